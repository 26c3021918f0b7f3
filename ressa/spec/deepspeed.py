"""Which of DeepSpeed's settings `repair.deepspeed` may override, and why it may not the others."""

from collections.abc import Iterator, Mapping
from typing import Any

from ressa.errors import did_you_mean
from ressa.spec.yaml import Path, Problem

_BATCHES = "follows from repair.batch_size, repair.micro_batch and resources.workers"
_OURS: dict[Path, str] = {
    ("train_batch_size",): _BATCHES,
    ("train_micro_batch_size_per_gpu",): _BATCHES,
    ("gradient_accumulation_steps",): _BATCHES,
    ("gradient_clipping",): "is repair.clip",
    ("gradient_allreduce_op",): "is settled: losses are weighted by answer tokens",
    ("optimizer",): "is settled: AdamW; its rate is repair.learning_rate",
    ("scheduler",): "follows from repair.schedule and repair.warmup_steps",
    ("bf16", "enabled"): "is repair.dtype",
    ("fp16", "enabled"): "is repair.dtype",
    ("zero_optimization", "stage"): "is repair.zero_stage",
    ("zero_optimization", "offload_optimizer"): "is repair.offload",
    ("zero_optimization", "offload_param"): "is not supported: see repair.offload",
    (
        "zero_optimization",
        "memory_efficient_linear",
    ): "is settled: it would change rounding for good",
    ("zero_allow_untested_optimizer",): "is settled: AdamW is torch's",
    ("zero_force_ds_cpu_optimizer",): "is settled: AdamW is torch's",
}
"""What is a field of `repair` already, or decides what is learnt."""

_ALLOWED: dict[Path, tuple[type, ...]] = {
    ("communication_data_type",): (str,),
    ("fp16", "hysteresis"): (int,),
    ("fp16", "initial_scale_power"): (int,),
    ("fp16", "loss_scale_window"): (int,),
    ("fp16", "min_loss_scale"): (int, float),
    ("memory_breakdown",): (bool,),
    ("wall_clock_breakdown",): (bool,),
    ("zero_optimization", "allgather_bucket_size"): (int,),
    ("zero_optimization", "allgather_partitions"): (bool,),
    ("zero_optimization", "contiguous_gradients"): (bool,),
    ("zero_optimization", "overlap_comm"): (bool,),
    ("zero_optimization", "reduce_bucket_size"): (int,),
    ("zero_optimization", "reduce_scatter"): (bool,),
    ("zero_optimization", "round_robin_gradients"): (bool,),
    ("zero_optimization", "stage3_max_live_parameters"): (int,),
    ("zero_optimization", "stage3_max_reuse_distance"): (int,),
    ("zero_optimization", "stage3_param_persistence_threshold"): (int,),
    ("zero_optimization", "stage3_prefetch_bucket_size"): (int,),
    ("zero_optimization", "sub_group_size"): (int,),
}
_SECTIONS = {path[0] for path in (*_ALLOWED, *_OURS) if len(path) == 2}


def deepspeed_faults(settings: Mapping[str, Any]) -> Iterator[Problem]:
    """Yields what is wrong with which setting."""
    for path, value in _leaves(settings):
        name = ".".join(map(str, path))
        if path in _OURS:
            yield Problem(path, f"{_OURS[path]}. Leave it out.")
        elif path not in _ALLOWED:
            known = [".".join(map(str, other)) for other in _ALLOWED]
            yield Problem(
                path,
                f"no setting that can be overridden.{did_you_mean(name, known)} "
                f"Known: {', '.join(known)}.",
            )
        elif not _is_of(value, _ALLOWED[path]):
            kinds = " or ".join(kind.__name__ for kind in _ALLOWED[path])
            yield Problem(path, f"must be {kinds}, got {value!r}.")


def _leaves(settings: Mapping[str, Any]) -> Iterator[tuple[Path, Any]]:
    for key, value in settings.items():
        if key in _SECTIONS and isinstance(value, Mapping):
            for inner, setting in value.items():
                yield (key, inner), setting
        else:
            yield (key,), value


def _is_of(value: Any, kinds: tuple[type, ...]) -> bool:
    # A truth value is an int to Python, not to a reader.
    return isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))

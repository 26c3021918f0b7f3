"""Loading a model by its catalog name, from a folder, or from the Hugging Face hub."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
from transformers.utils import logging as transformers_logging

from ressa.errors import RessaError, SpecError
from ressa.models.asking import Asking
from ressa.models.identity import checked_folder, pinned, refuse_incomplete
from ressa.models.sizes import resize
from ressa.models.towers import Towers, find_towers
from ressa.models.vlm import VLM
from ressa.sparsity import Inventory
from ressa.spec import ModelRef

TRUST = "RESSA_TRUST_REMOTE_CODE"
"""The user's consent, in the environment: a sweep file may come from a stranger."""


def load_vlm(ref: ModelRef | str) -> VLM:
    """Loads a model with its processor, ready to answer, on the CPU.

    Args:
        ref: a catalog name ("pocket-blip2"), a folder that `save_pretrained` wrote (model and
            processor), or a hub id ("organisation/name"), tried in this order.

    Raises:
        SpecError: it is not there, cannot be reached, or is no vision-language model.
    """
    ref = ModelRef(id=ref) if isinstance(ref, str) else ref
    with reading(ref, weights=True) as (source, options):
        processor = AutoProcessor.from_pretrained(source, **options)
        # Pickled weights could run code of their own, and cannot be mapped into memory.
        model = AutoModelForImageTextToText.from_pretrained(
            source, dtype=getattr(torch, ref.dtype), use_safetensors=True, **options
        )
    towers = find_towers(model, ref.towers.model_dump())
    vlm = VLM(name=ref.id, model=model.eval(), processor=processor, towers=towers)
    if ref.image_size is not None:
        resize(vlm, ref.image_size)
    return vlm


def refuse_unloadable(ref: ModelRef) -> None:
    """Refuses a model that no trial could load; its weights are not read.

    Raises:
        SpecError: its weights are pickled, missing or damaged, its processor cannot be made, or
            how it is asked is not known.
    """
    with reading(ref, weights=True) as (source, options):
        processor = AutoProcessor.from_pretrained(source, **options)
        if hasattr(processor, "tokenizer"):
            model = _without_weights(ref, source, options)
            Asking(name=ref.id, model=model, processor=processor).prompt("what is it?")


def load_inventory(ref: ModelRef | str) -> Inventory:
    """Lists a model's layers from its configuration alone; arguments as of `plan_towers`."""
    return plan_towers(ref).inventory


def plan_towers(ref: ModelRef | str) -> Towers:
    """Finds a model's towers from its configuration alone: no weight is read or made.

    Raises:
        SpecError: as for `load_vlm`.
    """
    ref = ModelRef(id=ref) if isinstance(ref, str) else ref
    with reading(ref) as (source, options):
        model = _without_weights(ref, source, options)
        towers = find_towers(model, ref.towers.model_dump())
        if ref.image_size is not None:  # a fault of the spec, before any weight is read
            processor = AutoProcessor.from_pretrained(source, **options)
            resize(
                VLM(name=ref.id, model=model, processor=processor, towers=towers), ref.image_size
            )
    return towers


def _without_weights(ref: ModelRef, source: str, options: dict[str, Any]) -> Any:
    config = AutoConfig.from_pretrained(source, **options)
    own_code = getattr(config, "auto_map", None) or {}
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and (
        "AutoModelForImageTextToText" not in own_code
    ):
        raise SpecError(
            f"model {ref.id}: transformers knows its type, {config.model_type}, as no "
            "vision-language model (image and text in, text out). docs/model-types.md lists those "
            "that it knows."
        )
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(
            config, trust_remote_code=ref.trust_remote_code
        )


@contextmanager
def reading(ref: ModelRef, *, weights: bool = False) -> Iterator[tuple[str, dict[str, Any]]]:
    """Says where to read a model from and how, and turns what goes wrong into a SpecError.

    Of a hub model only the commit that its revision stands for is read.
    """
    folder = checked_folder(ref.id)
    if ref.trust_remote_code and os.environ.get(TRUST) != "1":
        raise SpecError(
            f"model {ref.id}: the file asks to run Python code that the model brings "
            f"(trust_remote_code). If you have read it and trust it, set {TRUST}=1."
        )
    options: dict[str, Any] = {"trust_remote_code": ref.trust_remote_code}
    if folder is not None:
        options["local_files_only"] = True  # a folder that lacks a file must not ask the hub
    else:
        known, answers = pinned(ref, weights=weights)
        options["revision"] = known.revision
        # Without an answer transformers would ask for each file anew, for minutes.
        options["local_files_only"] = not answers
    try:
        if folder is not None and weights:
            refuse_incomplete(ref.id, folder)
        with no_progress_bars(folder is not None):
            yield ref.id if folder is None else str(folder), options
    # torch's own, of too little memory too, are no fault of the files.
    except (RessaError, RuntimeError, MemoryError):
        raise
    # A missing or damaged file, an unreachable hub, a class that is no vision-language model, a
    # package that this model needs: each library has errors of its own. The cause is kept.
    except Exception as error:
        raise SpecError(_failure(ref, folder, error)) from error


def _failure(ref: ModelRef, folder: Path | None, error: Exception) -> str:
    where = f"the hub, revision {ref.revision or 'newest'}" if folder is None else str(folder)
    reason = " ".join(str(error).split())
    hint = (
        "Check the id, the revision and the network (HF_HUB_OFFLINE), or give the folder of a copy."
        if folder is None
        else "It must hold what the model's and the processor's save_pretrained wrote."
    )
    return f"model {ref.id} cannot be loaded from {where}: {reason[:400]} {hint}"


@contextmanager
def no_progress_bars(quiet: bool = True) -> Iterator[None]:
    """Silences transformers' bars while files are read or written that take no time to speak of."""
    was_on = transformers_logging.is_progress_bar_enabled()
    if quiet and was_on:
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if quiet and was_on:
            transformers_logging.enable_progress_bar()

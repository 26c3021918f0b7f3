"""Where the sweep of a file lies: at the file's own `store`, or where the environment says."""

import contextlib
import os
from pathlib import Path

from ressa.errors import ConflictError, NotFoundError, StoreError
from ressa.spec import SweepSpec
from ressa.store import open_store


def placed(store: str) -> str:
    """Returns where a file's `store` lies: RESSA_STORE stands for one that a folder is added to."""
    is_absolute = "://" in store or Path(os.path.expanduser(store)).is_absolute()
    return store if is_absolute else os.environ.get("RESSA_STORE", store)


def at_its_place(spec: SweepSpec) -> SweepSpec:
    """Returns a file's sweep with the store to run it in.

    Raises:
        ConflictError: RESSA_STORE would begin anew what lies in the file's own store.
    """
    place = placed(spec.store)
    if place != spec.store and _holds(spec.store, spec) and not _holds(place, spec):
        raise ConflictError(
            f"sweep {spec.name!r} was begun in {spec.store}, as its file says, and RESSA_STORE is "
            f"{place}, where it would begin anew. Name one of them: --store {spec.store} goes on "
            f"with it, --store {place} begins anew."
        )
    return spec.model_copy(update={"store": place})


def _holds(place: str, spec: SweepSpec) -> bool:
    with contextlib.suppress(NotFoundError, StoreError):
        return open_store(place).sweep(spec.name).spec().identity == spec.identity
    return False

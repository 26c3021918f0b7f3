"""One thread for small matrices."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def one_thread() -> Iterator[None]:
    """Lets BLAS and OpenMP use one thread; also a decorator.

    On matrices of a map's size more threads mostly wait for each other: they double or triple the
    processor time and save none. What sums come to does not depend on the number of cores then.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1):
        yield

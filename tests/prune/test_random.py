from ressa.prune.random import Random
from ressa.testing import PruneMethodContract


class TestRandomKeepsTheContract(PruneMethodContract):
    method = Random

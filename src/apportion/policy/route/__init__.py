"""Which of the offered options (a model, an endpoint) serves this request."""

from apportion.policy.route.least_load import LeastLoad
from apportion.policy.route.power_of_two import PowerOfTwo
from apportion.policy.route.priced import Priced
from apportion.policy.route.random import Random
from apportion.policy.route.round_robin import RoundRobin
from apportion.policy.route.weighted import Weighted

__all__ = ["LeastLoad", "PowerOfTwo", "Priced", "Random", "RoundRobin", "Weighted"]

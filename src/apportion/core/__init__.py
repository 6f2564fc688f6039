"""The words everything else is written in. Standard library only, no I/O."""

from apportion.core import catalogue
from apportion.core.budget import Account, Budget
from apportion.core.cost import Cost
from apportion.core.decision import Decision
from apportion.core.errors import (
    AmountError,
    ApportionError,
    BudgetError,
    DuplicateMethodError,
    MethodFileError,
    ParameterError,
    SavedStateError,
    UnknownMethodError,
    UnknownResourceError,
)
from apportion.core.eviction import Eviction
from apportion.core.features import Features
from apportion.core.guard import Drawn, Guard, StreamWatch, Verdict
from apportion.core.ledger import Ledger, MemoryLedger, Refusal
from apportion.core.method import AnyOf, Constraint, Interval, Kind, MappingOf, Method, OneOf
from apportion.core.option import Option
from apportion.core.outcome import Outcome, Status
from apportion.core.policy import Policy
from apportion.core.predictor import (
    Encoder,
    Estimate,
    LatencyPredictor,
    LengthPredictor,
    QualityPredictor,
    Quantiles,
)
from apportion.core.pricer import Pricer
from apportion.core.resource import (
    BYTES,
    FLOPS,
    GCO2,
    JOULES,
    PARALLEL,
    REQUESTS,
    SAMPLES,
    SECONDS,
    SERVER_SECONDS,
    TOKENS,
    USD,
    Resource,
    add_resource,
    resource,
    resources,
)
from apportion.core.state import State
from apportion.core.strategy import Answer, Call, Plan, Reply, Strategy, drive

__all__ = [
    "BYTES",
    "FLOPS",
    "GCO2",
    "JOULES",
    "PARALLEL",
    "REQUESTS",
    "SAMPLES",
    "SECONDS",
    "SERVER_SECONDS",
    "TOKENS",
    "USD",
    "Account",
    "AmountError",
    "Answer",
    "AnyOf",
    "ApportionError",
    "Budget",
    "BudgetError",
    "Call",
    "Constraint",
    "Cost",
    "Decision",
    "Drawn",
    "DuplicateMethodError",
    "Encoder",
    "Estimate",
    "Eviction",
    "Features",
    "Guard",
    "Interval",
    "Kind",
    "LatencyPredictor",
    "Ledger",
    "LengthPredictor",
    "MappingOf",
    "MemoryLedger",
    "Method",
    "MethodFileError",
    "OneOf",
    "Option",
    "Outcome",
    "ParameterError",
    "Plan",
    "Policy",
    "Pricer",
    "QualityPredictor",
    "Quantiles",
    "Refusal",
    "Reply",
    "Resource",
    "SavedStateError",
    "State",
    "Status",
    "Strategy",
    "StreamWatch",
    "UnknownMethodError",
    "UnknownResourceError",
    "Verdict",
    "add_resource",
    "catalogue",
    "drive",
    "resource",
    "resources",
]

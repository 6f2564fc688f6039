"""Profiles measured on live endpoints: a plan without I/O, a driver that is handed a client, and the fit."""

from apportion.simulate.calibrate.asks import Ask, CalibrationError, Client, Heard, Prompts, Round
from apportion.simulate.calibrate.drive import Bounds, Log, drive
from apportion.simulate.calibrate.fitting import Calibrated, Known, calibrated, calibrated_hosted
from apportion.simulate.calibrate.plan import Clock, Limits, plan

__all__ = [
    "Ask",
    "Bounds",
    "Calibrated",
    "CalibrationError",
    "Client",
    "Clock",
    "Heard",
    "Known",
    "Limits",
    "Log",
    "Prompts",
    "Round",
    "calibrated",
    "calibrated_hosted",
    "drive",
    "plan",
]

"""Tuning: the same budget of trials for every variant of a study, and the best values written out."""

from fedpisa.tuning.plan import Plan, read_plan
from fedpisa.tuning.standing import Standing
from fedpisa.tuning.subject import Subject
from fedpisa.tuning.tune import TrialProgress, tune

__all__ = ["Plan", "Standing", "Subject", "TrialProgress", "read_plan", "tune"]

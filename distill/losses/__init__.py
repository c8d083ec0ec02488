"""Losses: CompRess and the baselines it is compared with, one file per method."""

from distill.losses.anchors import AnchorQueue
from distill.losses.base import METHODS, DistillationLoss, load_plugins, register_method
from distill.losses.cc import CC, CCReleased
from distill.losses.clusterfit import ClusterFit
from distill.losses.compress import CompRess
from distill.losses.crd import CRD
from distill.losses.dataset_anchors import DatasetAnchors
from distill.losses.reg import Reg
from distill.losses.reg_bn import RegBN
from distill.losses.rkd import RKD
from distill.losses.seed import SEED
from distill.losses.simreg import SimReg
from distill.losses.sp import SP
from distill.losses.supervised import Supervised

__all__ = [
    "CC",
    "CRD",
    "METHODS",
    "RKD",
    "SEED",
    "SP",
    "AnchorQueue",
    "CCReleased",
    "ClusterFit",
    "CompRess",
    "DatasetAnchors",
    "DistillationLoss",
    "Reg",
    "RegBN",
    "SimReg",
    "Supervised",
    "load_plugins",
    "register_method",
]

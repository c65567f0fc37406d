"""What the tests of training share: a net so small that a whole run takes a fraction of a second, and what "the same run" means."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from config import merge
from train import Config, build_config, train

ROOT = Path(__file__).resolve().parent.parent

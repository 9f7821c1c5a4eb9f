"""Training: the Trainer, its recipes, checkpoints and metrics."""
from minires.training.card import ModelCard, load, load_model, save
from minires.training.metrics import Score, evaluate, read_metrics
from minires.training.recipes import RECIPES, Recipe, make_recipe
from minires.training.run import Settings, build_run
from minires.training.trainer import Trainer

__all__ = ["RECIPES", "ModelCard", "Recipe", "Score", "Settings", "Trainer", "build_run", "evaluate", "load",
           "load_model", "make_recipe", "read_metrics", "save"]

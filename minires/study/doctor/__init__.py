"""The doctor: classic silent mistakes of training, found by experiment rather than by reading code.

    findings = doctor(model, train_loader, test_loader, lr=0.1)     # in a script, before training
    findings = doctor_run("runs/mine")                              # minires doctor runs/mine

Each finding names what was seen, in numbers, and what to do. No finding means that none of the experiments failed.
"""
from functools import partial

from minires.study.doctor.data import look_at_data
from minires.study.doctor.finding import Finding
from minires.study.doctor.model import learned, look_at_model
from minires.study.doctor.run import doctor_run

__all__ = ["Finding", "doctor", "doctor_run", "look_at_data", "look_at_model"]


def doctor(model, train, test=None, *, lr=None, predict=None, picture=None):
    """A list of Findings about a model that is to be trained and its data.

    train, test: `minires.data.Loader`s. lr: the learning rate that is meant, for the range test. predict: what the script
    evaluates with, y = predict(x); the model's own evaluation by default. picture: a .png for the range test.
    The model is left as it was found: the experiments train copies.
    """
    return (look_at_data(train, test, learn=partial(learned, model, train))
            + look_at_model(model, train, lr=lr, predict=predict, picture=picture))

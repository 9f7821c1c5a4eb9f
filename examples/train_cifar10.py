"""Train a ResNet-20 on CIFAR-10 for ten epochs: python examples/train_cifar10.py [FOLDER THAT HOLDS CIFAR-10]"""
import sys

import numpy as np

from minires import SGD, Trainer, build_model
from minires.data import Loader, channel_statistics, load_dataset
from minires.schedules import OneCycleLR

train, test = load_dataset("cifar10", *sys.argv[1:2])
mean, std = channel_statistics(train.images)
rng = np.random.default_rng(0)
batches = Loader(train, 128, mean=mean, std=std, augment=True, shuffle=True, rng=rng)
test_batches = Loader(test, 500, mean=mean, std=std)
model = build_model("resnet20", rng=rng)
optimiser = SGD(model.parameters(), lr=0.2, momentum=0.9, weight_decay=5e-4, nesterov=True)
schedule = OneCycleLR(optimiser, max_lr=0.2, total_steps=10 * len(batches))
trainer = Trainer(model, optimiser, batches, test_batches, schedule=schedule, out="runs/example")
trainer.fit(epochs=10)

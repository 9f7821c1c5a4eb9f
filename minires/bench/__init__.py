"""What `minires bench` runs: engines side by side, each in a process of its own, in turns.

Reading order: compare (what is measured and how it is reported), workers (processes in turns), worker (one process),
engines (the two engines), torch_resnet (the networks as PyTorch users write them), machine, tables, command.
"""

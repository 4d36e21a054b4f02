"""Notes on differences from this project that rows of several sources share."""

STOCHASTIC_DEPTH = """\
stochastic depth from a rate of 0.1 on runs branches on exactly the kept share of the batch \
(model.drop_path_mode=bernoulli: a draw per sample)"""

FACEBOOK = f"""\
Here: bf16 instead of fp16 with loss scaling; the learning rate follows every step \
(schedule.reference_epoch_steps=true: once per epoch, one epoch late); the moving average is evaluated too; \
{STOCHASTIC_DEPTH}"""

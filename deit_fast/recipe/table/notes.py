"""What the rows of several sources say of how this project differs, in the same words."""

STOCHASTIC_DEPTH = """\
stochastic depth from a rate of 0.1 on runs branches on exactly the kept share of the batch \
(model.drop_path_mode=bernoulli: a draw per sample)"""

FACEBOOK = f"""\
Here: bf16 instead of fp16 with loss scaling; the learning rate follows every step \
(schedule.reference_epoch_steps=true: once per epoch, one epoch late); the moving average is evaluated too; \
{STOCHASTIC_DEPTH}"""

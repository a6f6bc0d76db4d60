"""Plan the mixture before training: `versatune plan`, its table and its picture.

Reading order: plan_command, plan_inputs, planners, merge, mixmin, kept_runs, kept_models, kept_weights. What is pure
arithmetic (bounds, search, front, the file) is in `mixture/planning/`.
"""

"""Run a model through DeepSpeed: its settings, optimizer steps, checkpoints. Nothing else imports DeepSpeed."""

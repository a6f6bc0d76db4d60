"""Decide without training: simulate, replay, sweep, and look ahead."""

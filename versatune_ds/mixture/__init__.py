"""Decide which domain is drawn how often, from losses by domain.

Numbers in, numbers out: nothing here knows torch, files of data or other ranks. The training loop passes in losses that
are already summed over ranks and receives a `Decision`.

Reading order: policies/, weights, statistics, signals, safeguards, controller. Import from the modules: config/ needs
`policies/`, and would otherwise load the rest before it is defined itself.
"""

"""Plan a mixture before training, from what training on one domain alone did to the losses of all.

Pure numbers, as in `policies/`: nothing here knows torch, rows or other processes.

Reading order: transfer_table, transfer_reader; predictor, measured_changes, transfer, calibration; goal,
limits, search, front; plan_file, track.
"""

"""Which examples, in which rows, at which step: order, draws by mixture, packing, the plan of a batch."""

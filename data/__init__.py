"""Images, labels, groups, feature shards, scores and submissions: everything but neural networks."""

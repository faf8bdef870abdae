"""How well a set represents production: distances, each beside what random draws of the same size get.

A raw distance says little: at the size of a calibration set, even a fair draw is at some distance. So every metric has
its null, the same statistic for random draws of the same size from the pool, as percentile and ratio. A set is called
farther than random only if the whole panel says so, at a family-wise error rate of 5 %.

One file per aspect: lengths, domains, tokens, embeddings, classifier, activations; `null` has the random draws, `panel`
combines the aspects.
"""

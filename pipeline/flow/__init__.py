"""The Ray Data graphs and the cluster they run on; the only modules that import ray."""

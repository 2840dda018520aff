"""Token batches -> unit vectors: load the model, forward, pool, normalize. Runs without ray and faiss.

encode   the encoder: batches of a split, and what may go wrong with one
load     the transformer, from a model folder
head     what follows it: pooling and the model's other modules
cpu      linear layers packed for oneDNN, and memory that is kept
faults   what an error of torch means
"""

from pipeline.encoder.encode import Compute, EncodedSplit, Encoder, best_compute
from pipeline.encoder.faults import is_out_of_memory

__all__ = ["Compute", "EncodedSplit", "Encoder", "best_compute", "is_out_of_memory"]

"""The names of the files in a stage's folder."""

import re

RECORD = "record.json"
CONFIG = "config.json"
METRICS = "metrics.jsonl"
STAMPS = "stamps.json"
LOG = "log.txt"
CHECKPOINT = "checkpoint"
CHECKPOINT_STATE = "checkpoint.json"  # in that folder; it names the file of tensors beside it
ATTEMPT = "attempt.json"
PLACE = "place-rank{}.json"
PLACES = re.compile(r"place-rank\d+\.json")
LEASE_OBJECT = "lease.json"  # behind a URL; a folder has numbered ones
COMPARED_LAYERS = "compared_layers.json"  # by method, pairs of a student's and its teacher's layers

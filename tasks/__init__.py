"""What is learned and how it is judged: data, classes, sample ids.

A task is a frozen description (`task.Task`) that knows its classes, its input shape and the identity of its data
without loading torch; `load()` brings the three splits. Adding one: a file here and a line in `TASKS`.
"""

TASKS: dict[str, str] = {
    "mnist": "raydistill.tasks.mnist:Mnist",
    "fashion_mnist": "raydistill.tasks.fashion_mnist:FashionMnist",
    "cifar10": "raydistill.tasks.cifar:Cifar10",
    "cifar100": "raydistill.tasks.cifar:Cifar100",
    "svhn": "raydistill.tasks.svhn:Svhn",
    "image_folder": "raydistill.tasks.image_folder:ImageFolder",
    "image_manifest": "raydistill.tasks.image_manifest:ImageManifest",
    "many_class": "raydistill.tasks.many_class:ManyClass",
    "solar_cells": "raydistill.tasks.solar_cells:SolarCells",
    "npy": "raydistill.tasks.npy:Npy",
    "speech_frames": "raydistill.tasks.speech_frames:SpeechFrames",
    "image_parquet": "raydistill.tasks.image_parquet:ImageParquet",
    "webdataset": "raydistill.tasks.webdataset:WebDataset",
    "tensors": "raydistill.tasks.tensors:Tensors",
}
"""Name in a plan → "module:class"."""

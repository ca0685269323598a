"""What is learned and how it is judged: data, classes, sample ids.

A task is a frozen description (`tasks.task.Task`) that knows its classes, its input shape and the identity of its data
without loading torch; `load()` brings the three splits. Adding one: a file here and a line in `TASKS`.
"""

TASKS: dict[str, str] = {
    "mnist": "tasks.mnist:Mnist",
    "fashion_mnist": "tasks.fashion_mnist:FashionMnist",
    "cifar10": "tasks.cifar:Cifar10",
    "cifar100": "tasks.cifar:Cifar100",
    "svhn": "tasks.svhn:Svhn",
    "image_folder": "tasks.image_folder:ImageFolder",
    "many_class": "tasks.many_class:ManyClass",
    "speech_frames": "tasks.speech_frames:SpeechFrames",
    "tensors": "tasks.tensors:Tensors",
}
"""Name in a plan → "module:class"."""

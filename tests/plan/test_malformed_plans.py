"""Plans that cannot run: each is refused in one line that names the place, the mistake and the way out."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

PLAN = """\
name: probe
task: {name: mnist}
stages:
  teacher:
    stage: train
    model: {name: mlp, widths: [30]}
    epochs: 2
  student:
    stage: distill
    student: {name: mlp, widths: [20]}
    teachers: [teacher]
    epochs: 2
"""
JARGON = (
    "input should",
    "valid dictionary",
    "tuple",
    "discriminator",
    "nonetype",
    "unable to",
    "extra inputs",
)
PROBE = """
import sys
from raydistill.cli import main
for plan in sys.argv[1:]:
    try:
        main.main(["run", plan], standalone_mode=False)
    except SystemExit as end:
        print(end.code)
print(sorted({"torch", "ray", "mlflow", "matplotlib", "pandas"} & set(sys.modules)))
"""


def change(old: str, new: str) -> str:
    """The plan with the first `old` written as `new`."""
    assert old in PLAN
    return PLAN.replace(old, new, 1)


def task(text: str) -> str:
    """The plan with another task, on line 2."""
    return change("{name: mnist}", text)


def model(text: str) -> str:
    """The plan with another model for its teacher, on line 6."""
    return change("{name: mlp, widths: [30]}", text)


def teacher(text: str) -> str:
    """The plan with one more line for its teacher, line 8."""
    return change("    epochs: 2\n", f"    epochs: 2\n    {text}\n")


def student(text: str) -> str:
    """The plan with more lines for its student, from line 13 on."""
    return PLAN + "".join(f"    {line}\n" for line in text.splitlines())


def stage(text: str) -> str:
    """The plan with one more stage, on line 13."""
    return PLAN + f"  {text}\n"


def clusters(text: str) -> str:
    """The plan with a stage called `clusters`, on line 13."""
    return stage(f"clusters: {text}")


def specialists(more: str) -> str:
    """The plan with two given clusters, and specialists with more options, on lines 13 and 14."""
    text = f"generalist: teacher, clusters: clusters, epochs: 1{', ' * bool(more)}{more}"
    return (
        clusters("{stage: confusion_clusters, given: [[1, 2], [3, 4]]}")
        + f"  specialists: {{stage: train_specialists, {text}}}\n"
    )


REFUSED = {
    # keys that do not exist
    "key of the plan": (PLAN + "stage: {}\n", "13: stage", "unknown key `stage`; did you mean `stages`?"),
    "key of the task": (task("{name: mnist, foldr: x}"), "2: task.foldr", "did you mean `folder`?"),
    "key of a stage": (teacher("epoch: 3"), "8: stages.teacher.epoch", "did you mean `epochs`?"),
    "key of an optimizer": (
        teacher("optimizer: {name: sgd, lr: 0.1}"),
        "8: stages.teacher.optimizer.lr",
        "known: `learning_rate`, `momentum`",
    ),
    "key of a schedule": (
        teacher("schedule: {name: cosine, fnal: 0}"),
        "8: stages.teacher.schedule.fnal",
        "did you mean `final`?",
    ),
    "key of an augmentation, on its own line": (
        teacher("augment:\n      - {name: flip}\n      - name: shift\n        pixel: 2"),
        "11: stages.teacher.augment.1.pixel",
        "did you mean `pixels`?",
    ),
    "key of a transfer set": (
        teacher("transfer: {fractions: 0.1}"),
        "8: stages.teacher.transfer.fractions",
        "did you mean `fraction`?",
    ),
    "key of the resources": (teacher("resources: {gpu: 1}"), "8: stages.teacher.resources.gpu", "`gpus`?"),
    "key of a method": (
        student("method: {method: hinton, temprature: 4}"),
        "13: stages.student.method.temprature",
        "did you mean `temperature`?",
    ),
    "key of a combination": (
        student("combine: {rules: geometric}"),
        "13: stages.student.combine.rules",
        "did you mean `rule`?",
    ),
    "key of the tracking": (PLAN + "tracking: {experimnt: a}\n", "13: tracking.experimnt", "`experiment`?"),
    "option of a model": (
        model("{name: mlp, width: [30]}"),
        "6: stages.teacher.model.width",
        "model `mlp` has no option `width`; did you mean `widths`?",
    ),
    "option of a model, on its own line": (
        model("\n      name: cnn\n      widths: [8]\n      batchnorm: true"),
        "9: stages.teacher.model.batchnorm",
        "did you mean `batch_norm`?",
    ),
    # names that do not exist
    "task": (task("{name: mnits}"), "2: task.name", "unknown task `mnits`; did you mean `mnist`?"),
    "task that is a number": (task("{name: 5}"), "2: task.name", "known: `cifar10`, `cifar100`"),
    "task that is a list": (task("{name: [mnist]}"), "2: task.name", 'unknown task `["mnist"]`'),
    "model": (
        model("{name: mpl}"),
        "6: stages.teacher.model.name",
        "unknown model `mpl`; did you mean `mlp`?",
    ),
    "module of the user's": (
        model("{name: no_such_module_here:build}"),
        "6: stages.teacher.model",
        "no module `no_such_module_here` on the import path",
    ),
    "function without a module": (
        model("{name: ':'}"),
        "6: stages.teacher.model.name",
        "a function is written `package.module:function`",
    ),
    "kind of a stage": (change("train", "trian"), "5: stages.teacher.stage", "did you mean `train`?"),
    "kind that is a list": (
        change("stage: train", "stage: [a]"),
        "5: stages.teacher.stage",
        "known: `adjust_class_bias`, `codistill`, `combine",
    ),
    "method": (student("method: {method: hintn}"), "13: stages.student.method.method", "`hinton`?"),
    "optimizer": (
        teacher("optimizer: {name: adma}"),
        "8: stages.teacher.optimizer.name",
        "unknown optimizer `adma`; did you mean `adam`?",
    ),
    "schedule": (
        teacher("schedule: {name: cosin}"),
        "8: stages.teacher.schedule.name",
        "did you mean `cosine`?",
    ),
    "augmentation": (
        teacher("augment: [{name: shfit}]"),
        "8: stages.teacher.augment.0.name",
        "unknown augmentation `shfit`; did you mean `shift`?",
    ),
    "stage that is read": (
        change("[teacher]", "[techer]"),
        "11: stages.student.teachers.0",
        "reads `techer`, which the plan does not define; did you mean `teacher`?",
    ),
    "stage in capitals": (change("[teacher]", "[Teacher]"), "11: stages.student.teachers.0", "`teacher`?"),
    "word for the weights": (
        student("combine: {weights: unifrom}"),
        "13: stages.student.combine.weights",
        "or `entropy`, not `unifrom`; did you mean `uniform`?",
    ),
    "rule": (
        student("combine: {rule: mean}"),
        "13: stages.student.combine.rule",
        "should be `arithmetic` or `geometric` or `kl_fusion`, not `mean`",
    ),
    "mode": (student("mode: lazy"), "13: stages.student.mode", "should be `stored` or `live`, not `lazy`"),
    "precision": (teacher("precision: float15"), "8: stages.teacher.precision", "did you mean `float16`?"),
    "split": (
        stage("judge: {stage: evaluate, models: [teacher], split: train}"),
        "13: stages.judge.split",
        "should be `validation` or `test`",
    ),
    "class": (
        teacher("transfer: {only_classes: [seven]}"),
        "8: stages.teacher.transfer.only_classes.0",
        "task `mnist`: there is no class `seven`; known: `0`, `1`",
    ),
    # what is missing
    "plan without a name": (change("name: probe\n", ""), "1", "`name` is missing"),
    "plan without stages": ("name: a\ntask: {name: mnist}\n", "1", "`stages` is missing"),
    "no stages at all": ("name: a\ntask: {name: mnist}\nstages: {}\n", "3: stages", "at least 1 entry"),
    "empty stage": ("name: a\ntask: {name: mnist}\nstages:\n  a:\n", "4: stages.a", "write `{stage: train}`"),
    "stage without a kind": (
        change("    stage: train\n", ""),
        "4: stages.teacher",
        "`stage` is missing: the stage kind, one of `train`, `distill`",
    ),
    "stage without epochs": (change("    epochs: 2\n", ""), "4: stages.teacher", "`epochs` is missing"),
    "model without a name": (
        model("{widths: [30]}"),
        "6: stages.teacher.model",
        "written `mlp` or `{name: mlp}`",
    ),
    "optimizer without a name": (
        teacher("optimizer: {betas: [0.9, 0.99]}"),
        "8: stages.teacher.optimizer",
        "`name` is missing: the optimizer, one of `sgd`, `adamw`",
    ),
    "option that a model needs": (
        model("{name: torchvision}"),
        "6: stages.teacher.model",
        "`architecture` is missing",
    ),
    "milestones": (
        teacher("schedule: {name: step}"),
        "8: stages.teacher.schedule",
        "`milestones` is missing",
    ),
    "one of two betas": (
        teacher("optimizer: {name: adamw, betas: [0.9]}"),
        "8: stages.teacher.optimizer.betas",
        "value number 2 is missing",
    ),
    "file of the task": (task("{name: tensors}"), "2: task", "`file` is missing"),
    # values of the wrong type
    "bool for a whole number": (
        change("epochs: 2", "epochs: true"),
        "7: stages.teacher.epochs",
        "should be a whole number, not `true`",
    ),
    "text for a whole number": (
        change("epochs: 2", "epochs: two"),
        "7: stages.teacher.epochs",
        "should be a whole number, not `two`",
    ),
    "fraction for a whole number": (
        change("epochs: 2", "epochs: 2.5"),
        "7: stages.teacher.epochs",
        "not `2.5`",
    ),
    "list for a whole number": (change("epochs: 2", "epochs: [2]"), "7: stages.teacher.epochs", "not `[2]`"),
    "date for a whole number": (
        change("epochs: 2", "epochs: 2020-01-01"),
        "7: stages.teacher.epochs",
        "not `2020-01-01`",
    ),
    "several lines for a whole number": (
        change("epochs: 2", "epochs: |\n      a\n      b"),
        "7: stages.teacher.epochs",
        "not `a b`",
    ),
    "nothing for a whole number": (
        change("epochs: 2", "epochs:"),
        "7: stages.teacher.epochs",
        "not `null`; write a value, or leave the key out",
    ),
    "number in quotes": (
        change("epochs: 2", "epochs: '2'"),
        "7: stages.teacher.epochs",
        "leave out the quotes",
    ),
    "text for a number": (
        teacher("optimizer: {name: sgd, learning_rate: fast}"),
        "8: stages.teacher.optimizer.learning_rate",
        "should be a number, not `fast`",
    ),
    "bool for a number": (
        student("method: {method: hinton, temperature: true}"),
        "13: stages.student.method.temperature",
        "should be a number, not `true`",
    ),
    "bool for a weight": (
        student("combine: {weights: [true]}"),
        "13: stages.student.combine.weights.0",
        "should be a number, not `true`",
    ),
    "text among weights": (
        student("combine: {weights: [1, a]}"),
        "13: stages.student.combine.weights.1",
        "should be a number, not `a`",
    ),
    "text among weights, on its own line": (
        student("combine:\n  weights:\n    - 1\n    - a"),
        "16: stages.student.combine.weights.1",
        "should be a number, not `a`",
    ),
    "map for weights": (
        student("combine: {weights: {teacher: 1}}"),
        "13: stages.student.combine.weights",
        "should be a list or `uniform`",
    ),
    "number for weights": (
        student("combine: {weights: 3}"),
        "13: stages.student.combine.weights",
        "write `[3]`",
    ),
    "word for a bool": (teacher("compile: yess"), "8: stages.teacher.compile", "should be `true` or `false`"),
    "number for text": (change("probe", "5"), "1: name", "should be text, not `5`; write it in quotes"),
    "number for a stage": (
        change("[teacher]", "[3]"),
        "11: stages.student.teachers.0",
        "should be text, not `3`",
    ),
    "text for a list": (
        change("[teacher]", "teacher"),
        "11: stages.student.teachers",
        "should be a list, not `teacher`; write `[teacher]`",
    ),
    "number for a list": (teacher("augment: 3"), "8: stages.teacher.augment", "should be a list"),
    "text for a map": (
        student("combine: geometric"),
        "13: stages.student.combine",
        "should be a mapping, not `geometric`; its keys: `rule`, `weights`",
    ),
    "text for an optimizer": (
        teacher("optimizer: adma"),
        "8: stages.teacher.optimizer.name",
        "unknown optimizer `adma`; did you mean `adam`?",
    ),
    "text for an augmentation": (
        teacher("augment:\n      - shift\n      - shfit"),
        "10: stages.teacher.augment.1.name",
        "unknown augmentation `shfit`; did you mean `shift`?",
    ),
    "text for a task": (task("mnits"), "2: task.name", "unknown task `mnits`; did you mean `mnist`?"),
    "list for a task": (task("[mnist]"), "2: task", "a task is written `mnist` or `{name: mnist}`"),
    "text for a model": (model("mpl"), "6: stages.teacher.model.name", "did you mean `mlp`?"),
    "list for a model": (
        model("[mlp]"),
        "6: stages.teacher.model",
        "a model is written `mlp` or `{name: mlp}`",
    ),
    "list for an optimizer": (
        teacher("optimizer: [sgd]"),
        "8: stages.teacher.optimizer",
        "write `{name: sgd}`",
    ),
    "text for a stage": (
        "name: a\ntask: {name: mnist}\nstages: {a: train}\n",
        "3: stages.a",
        "`epochs` is missing",
    ),
    "list for the stages": (
        "name: a\ntask: {name: mnist}\nstages: [a]\n",
        "3: stages",
        "should be a mapping",
    ),
    "fraction for a class": (
        teacher("transfer: {only_classes: [1.5]}"),
        "8: stages.teacher.transfer.only_classes.0",
        "should be a whole number or text, not `1.5`",
    ),
    "number for a folder": (task("{name: mnist, folder: 5}"), "2: task.folder", "should be text, not `5`"),
    "bool for a task's seed": (
        task("{name: mnist, split_seed: true}"),
        "2: task.split_seed",
        "should be a whole number",
    ),
    "bool for a width": (
        model("{name: mlp, widths: [true]}"),
        "6: stages.teacher.model.widths.0",
        "should be a whole number, not `true`",
    ),
    "text for a width": (
        model("{name: mlp, widths: [30, wide]}"),
        "6: stages.teacher.model.widths.1",
        "should be a whole number, not `wide`",
    ),
    "number for widths": (model("{name: mlp, widths: 30}"), "6: stages.teacher.model.widths", "write `[30]`"),
    "three betas": (
        teacher("optimizer: {name: adamw, betas: [0.9, 0.99, 0.999]}"),
        "8: stages.teacher.optimizer.betas",
        "at most 2 entries",
    ),
    # values that cannot be
    "no temperature": (
        student("method: {method: hinton, temperature: 0}"),
        "13: stages.student.method.temperature",
        "should be at least 0.001, not `0`",
    ),
    "negative temperature": (
        student("method: {method: hinton, temperature: -1}"),
        "13: stages.student.method.temperature",
        "should be at least 0.001",
    ),
    "a temperature that float32 cannot follow": (
        student("method: {method: hinton, temperature: 1e5}"),
        "13: stages.student.method.temperature",
        "should be at most 10,000",
    ),
    "negative loss weight": (
        student("method: {method: hinton, soft_weight: -0.1}"),
        "13: stages.student.method.soft_weight",
        "should be at least 0",
    ),
    "no loss at all": (
        student("method: {method: hinton, soft_weight: 0, hard_weight: 0}"),
        "13: stages.student.method.soft_weight",
        "nothing to learn from",
    ),
    "negative weight of a teacher": (
        student("combine: {weights: [-1]}"),
        "13: stages.student.combine.weights.0",
        "should be at least 0, not `-1`",
    ),
    "teachers that all weigh nothing": (
        student("combine: {weights: [0]}"),
        "13: stages.student.combine.weights",
        "at least one weight must be above 0",
    ),
    "models that all weigh nothing": (
        stage("judge: {stage: evaluate, models: [teacher], weights: [0]}"),
        "13: stages.judge.weights",
        "at least one weight must be above 0",
    ),
    "no workers": (teacher("resources: {workers: 0}"), "8: stages.teacher.resources.workers", "at least 1"),
    "no processor": (teacher("resources: {cpus: 0}"), "8: stages.teacher.resources.cpus", "above 0"),
    "a type of no graphics": (
        teacher("resources: {gpus: 0, accelerator: H100}"),
        "8: stages.teacher.resources.accelerator",
        "no GPU is asked for",
    ),
    "a processor as a custom resource": (
        teacher("resources: {custom: {CPU: 1}}"),
        "8: stages.teacher.resources.custom.CPU",
        "`resources: {cpus: …}`",
    ),
    "negative graphics": (teacher("resources: {gpus: -1}"), "8: stages.teacher.resources.gpus", "at least 0"),
    "memory in other units": (
        teacher("resources: {memory: 4GB}"),
        "8: stages.teacher.resources.memory",
        "such as `4GiB` or `500MiB`, not `4GB`",
    ),
    "no epochs": (
        change("epochs: 2", "epochs: 0"),
        "7: stages.teacher.epochs",
        "should be at least 1, not `0`",
    ),
    "more epochs than time": (
        change("epochs: 2", "epochs: 1" + "0" * 30),
        "7: stages.teacher.epochs",
        "should be at most 1,000,000",
    ),
    "number of 5,000 digits": (
        change("epochs: 2", "epochs: 1" + "0" * 5000),
        "7: not valid in a plan",
        "is no int",
    ),
    "no batch": (teacher("batch_size: 0"), "8: stages.teacher.batch_size", "should be at least 1"),
    "steps of no batch": (teacher("accumulate: 0"), "8: stages.teacher.accumulate", "should be at least 1"),
    "a shift of no softmax": (
        teacher("logit_adjustment: 1, binary_cross_entropy: {}".replace(", ", "\n    ")),
        "8: stages.teacher.logit_adjustment",
        "`binary_cross_entropy` has none; keep one",
    ),
    "a group like the rest": (
        teacher("parameter_groups: [{match: a}]"),
        "8: stages.teacher.parameter_groups.0",
        "write `lr_scale` or `weight_decay`",
    ),
    "no rate": (
        teacher("parameter_groups: [{match: a, lr_scale: 0}]"),
        "8: stages.teacher.parameter_groups.0.lr_scale",
        "above 0",
    ),
    "layers that grow": (teacher("layer_decay: 1.5"), "8: stages.teacher.layer_decay", "at most 1"),
    "no replicas": (teacher("replicas: 0"), "8: stages.teacher.replicas", "should be at least 1"),
    "a million replicas": (teacher("replicas: 1000000"), "8: stages.teacher.replicas", "at most 1,000"),
    "negative seed": (teacher("seed: -1"), "8: stages.teacher.seed", "should be at least 0"),
    "seed of 40 digits": (teacher("seed: 1" + "0" * 40), "8: stages.teacher.seed", "should be below"),
    "no fraction": (teacher("transfer: {fraction: 0}"), "8: stages.teacher.transfer.fraction", "above 0"),
    "more than everything": (
        teacher("transfer: {fraction: 1.5}"),
        "8: stages.teacher.transfer.fraction",
        "should be at most 1, not `1.5`",
    ),
    "all for validation": (
        task("{name: mnist, validation_fraction: 1}"),
        "2: task.validation_fraction",
        "should be below 1",
    ),
    "not a number": (
        teacher("optimizer: {name: sgd, learning_rate: .nan}"),
        "8: stages.teacher.optimizer.learning_rate",
        "should be a finite number",
    ),
    "endless number": (
        teacher("optimizer: {name: sgd, learning_rate: 1e400}"),
        "8: stages.teacher.optimizer.learning_rate",
        "should be a finite number",
    ),
    "NaN among options": (
        model("{name: mlp, dropout: .nan}"),
        "6: stages.teacher.model.dropout",
        "should be below 1",
    ),
    "momentum of 1": (
        teacher("optimizer: {name: sgd, momentum: 1}"),
        "8: stages.teacher.optimizer.momentum",
        "should be below 1",
    ),
    "Nesterov without momentum": (
        teacher("optimizer: {name: sgd, momentum: 0, nesterov: true}"),
        "8: stages.teacher.optimizer.momentum",
        "`nesterov` needs a `momentum` above 0",
    ),
    "milestones that fall": (
        teacher("schedule: {name: step, milestones: [1, 1]}"),
        "8: stages.teacher.schedule.milestones",
        "must increase",
    ),
    "milestone after the end": (
        teacher("schedule: {name: step, milestones: [1, 2]}"),
        "8: stages.teacher.schedule.milestones",
        "milestone 2 never comes: training ends after 2 epochs",
    ),
    "no milestones": (
        teacher("schedule: {name: step, milestones: []}"),
        "8: stages.teacher.schedule.milestones",
        "at least 1 entry, not `[]`",
    ),
    "mixup of nothing": (
        teacher("augment: [{name: mixup, alpha: 0}]"),
        "8: stages.teacher.augment.0.alpha",
        "should be above 0",
    ),
    "a crop of a range that ends before it begins": (
        teacher("augment: [flip, {name: resized_crop, scale: [0.5, 0.1]}]"),
        "8: stages.teacher.augment.1.scale",
        "0.5 is above 0.1; write the smaller end first",
    ),
    "a kernel without a middle": (
        teacher("augment: [{name: blur, kernel: 4}]"),
        "8: stages.teacher.augment.0.kernel",
        "write 5",
    ),
    "a blur that reaches over the image": (
        teacher("augment: [{name: blur, kernel: 57}]"),
        "8: stages.teacher.augment.0",
        "`kernel` 57 reaches over images of 28 x 28; write a smaller one",
    ),
    "shift by nothing": (
        teacher("augment: [{name: shift, pixels: 0}]"),
        "8: stages.teacher.augment.0.pixels",
        "should be at least 1",
    ),
    "one class": (
        model("{name: mlp, num_classes: 1}"),
        "6: stages.teacher.model.num_classes",
        "should be at least 2",
    ),
    "fewer outputs than classes": (
        model("{name: mlp, num_classes: 5}"),
        "6: stages.teacher.model.num_classes",
        "5 outputs are too few for the task's 10 classes",
    ),
    "class beyond the last": (
        teacher("transfer: {only_classes: [1, 10]}"),
        "8: stages.teacher.transfer.only_classes.1",
        "class 10 is not one of the task's 0 to 9",
    ),
    "class before the first": (
        teacher("transfer: {omit_classes: [-1]}"),
        "8: stages.teacher.transfer.omit_classes.0",
        "class -1 is not one",
    ),
    "no class left, by index and by name": (
        teacher("transfer: {omit_classes: [0, 1, 2, 3, 4, 5, 6, 7, 8, '9']}"),
        "8: stages.teacher.transfer.omit_classes",
        "every class is omitted",
    ),
    "no class chosen": (
        teacher("transfer: {only_classes: []}"),
        "8: stages.teacher.transfer.only_classes",
        "at least 1 entry",
    ),
    "depth that no network has": (
        model("{name: resnet, depth: 21}"),
        "6: stages.teacher.model",
        "not 6n + 2; the nearest are 20 and 26",
    ),
    "depth against the name": (
        model("\n      name: resnet20\n      depth: 32"),
        "8: stages.teacher.model.depth",
        "option `depth` is 20 by the model's name; leave it out",
    ),
    "depth that is not published": (
        model("{name: vgg8, depth: 9}"),
        "6: stages.teacher.model.depth",
        "should be `8` or `13`, not `9`",
    ),
    # names that lead elsewhere
    "plan's name as a path": (
        change("probe", "../x"),
        "1: name",
        "should be at most 100 letters, digits, `-` and `_`, not `../x`",
    ),
    "plan's name of 200 letters": (change("probe", "a" * 200), "1: name", "at most 100 letters"),
    "stage's name as a path": (
        change("  teacher:", "  ../teacher:"),
        "4: stages.../teacher",
        "lower-case letters, digits, `-` and `_`, a letter first",
    ),
    "stage's name with a dot": (
        change("  teacher:", "  tea.cher:"),
        "4: stages.tea.cher",
        "lower-case letters",
    ),
    "stage's name in capitals": (
        change("  teacher:", "  Teacher:"),
        "4: stages.Teacher",
        "lower-case letters",
    ),
    "stage's name that is a number": (change("  teacher:", "  1:"), "4: stages.1", "a letter first"),
    # settings that contradict one another
    "only some classes and not some": (
        teacher("transfer: {omit_classes: [0], only_classes: [1]}"),
        "8: stages.teacher.transfer.omit_classes",
        "exclude each other; keep one",
    ),
    "labels that are not there": (
        teacher("transfer: {labelled: false}"),
        "8: stages.teacher.transfer",
        "an unlabelled transfer set needs `distill`",
    ),
    "hard labels that are not there": (
        student("transfer: {labelled: false}\nmethod: {method: hinton, hard_weight: 0.1}"),
        "14: stages.student.method",
        "set `hard_weight: 0`",
    ),
    "memory of mixtures": (
        student("mode: live\naugment: [{name: flip}, {name: cutmix}]\nmethod: {method: contrastive_bank}"),
        "14: stages.student.augment.1",
        "`contrastive_bank` remembers samples, and a mixture of two is neither; leave `cutmix` out",
    ),
    "stored targets of random views": (
        student("augment: [{name: flip}]"),
        "13: stages.student.augment",
        "set `views: 8` (eight stored views per sample) or `mode: live`",
    ),
    "views of nothing": (student("views: 3"), "13: stages.student.views", "needs an `augment`"),
    "views of a live teacher": (
        student("mode: live\naugment: [{name: flip}]\nviews: 3"),
        "15: stages.student.views",
        "`views` is for stored targets",
    ),
    "live teachers and stored targets": (
        change("    teachers: [teacher]", "    mode: live\n    targets: teacher"),
        "11: stages.student.mode",
        "`mode: live` runs `teachers`, not stored `targets`",
    ),
    "teachers and targets": (student("targets: teacher"), "13: stages.student.targets", "not both; keep one"),
    "neither teachers nor targets": (
        change("    teachers: [teacher]\n", ""),
        "8: stages.student.teachers",
        "name `teachers`, or stored `targets`",
    ),
    "targets of views without augment": (
        stage("soft: {stage: predict_targets, teacher: teacher, views: 2}"),
        "13: stages.soft.views",
        "give both or neither",
    ),
    "student of other pixels": (
        stage(
            "soft: {stage: predict_targets, teacher: teacher}\n"
            "  other: {stage: distill, student: {name: mlp}, targets: soft, epochs: 1, views: 2,"
            " augment: [{name: flip}]}"
        ),
        "14: stages.other.views",
        "the student must see the pixels that the teacher saw",
    ),
    "more weights than teachers": (
        student("combine: {weights: [1, 2]}"),
        "13: stages.student.combine.weights",
        "2 weights for 1 teachers: teacher; write one for each",
    ),
    "more weights than models": (
        stage("judge: {stage: evaluate, models: [teacher], weights: [1, 2]}"),
        "13: stages.judge.weights",
        "2 weights for 1 models: teacher",
    ),
    "teacher with other classes": (
        change("{name: mlp, widths: [20]}", "{name: mlp, num_classes: 12}"),
        "11: stages.student.teachers.0",
        "`teacher` has 10 classes and `student` 12",
    ),
    "targets with other classes": (
        stage(
            "soft: {stage: predict_targets, teacher: teacher}\n"
            "  other: {stage: distill, student: {name: mlp, num_classes: 12}, targets: soft, epochs: 1}"
        ),
        "14: stages.other.targets",
        "`soft` has 10 classes and `other` 12",
    ),
    "one teacher twice": (
        change("[teacher]", "[teacher, teacher]"),
        "11: stages.student.teachers",
        "`teacher` is named twice",
    ),
    "twins in an ensemble": (
        stage(
            "twin: {stage: train, model: {name: mlp, widths: [30]}, epochs: 2}\n"
            "  judge: {stage: evaluate, models: [teacher, twin]}"
        ),
        "14: stages.judge.models",
        "`teacher` and `twin` would be equal to the last digit; give one another `seed`",
    ),
    # edges that lead nowhere
    "stage that reads itself": (
        change("[teacher]", "[student]"),
        "11: stages.student.teachers.0",
        "stage `student` reads itself",
    ),
    "circle": (
        stage(
            "a: {stage: distill, student: {name: mlp}, teachers: [b], epochs: 1}\n"
            "  b: {stage: distill, student: {name: mlp}, teachers: [c], epochs: 1}\n"
            "  c: {stage: distill, student: {name: mlp}, teachers: [a], epochs: 1}"
        ),
        "13: stages.a.teachers.0",
        "in a circle: a → b → c → a",
    ),
    "replica of one": (
        change("[teacher]", "[teacher.0]"),
        "11: stages.student.teachers.0",
        "`teacher` has no replicas",
    ),
    "replica beyond the last": (
        teacher("replicas: 2").replace("[teacher]", "[teacher.2]"),
        "12: stages.student.teachers.0",
        "`teacher` has the replicas `teacher.0` to `teacher.1`",
    ),
    "replica in other digits": (
        teacher("replicas: 2").replace("[teacher]", "[teacher.00]"),
        "12: stages.student.teachers.0",
        "`teacher.00` is not there",
    ),
    "replica without a number": (
        change("[teacher]", "[teacher.]"),
        "11: stages.student.teachers.0",
        "`teacher.` is not there",
    ),
    "one of several": (
        teacher("replicas: 2") + "  soft: {stage: predict_targets, teacher: teacher}\n",
        "14: stages.soft.teacher",
        "`teacher` has 2 replicas; write `teacher.0`",
    ),
    "other replicas of several": (
        teacher("replicas: 2")
        + "  more: {stage: train, model: {name: mlp}, epochs: 1, initial: teacher, replicas: 3}\n",
        "14: stages.more.initial",
        "`teacher` has 2 replicas; write `teacher.0`, or give `more` as many: each then reads that of its number",
    ),
    "targets of a model": (
        change("teachers: [teacher]", "targets: teacher"),
        "11: stages.student.targets",
        "`teacher` makes no targets: its kind is `train`; name a stage of `predict_targets`, `combine_targets`",
    ),
    "model of a judgement": (
        stage("judge: {stage: evaluate, models: [teacher]}\n  again: {stage: evaluate, models: [judge]}"),
        "14: stages.again.models.0",
        "`judge` makes no model: its kind is `evaluate`",
    ),
    "nobody in the ensemble": (
        stage("judge: {stage: evaluate, models: []}"),
        "13: stages.judge.models",
        "at least 1 entry",
    ),
    # files that are not there
    "folder without data": (
        task("{name: cifar10, folder: /nonexistent}"),
        "2: task.folder",
        "put `cifar-10-batches-py/` with `data_batch_1` to `data_batch_5` and `test_batch`",
    ),
    "file without data": (
        task("{name: tensors, file: /nonexistent/x.npz}"),
        "2: task.file",
        "finds no file `/nonexistent/x.npz`",
    ),
    "file that is no data": (
        task(f"{{name: tensors, file: {__file__}}}"),
        "2: task.file",
        "cannot be read",
    ),
    "weights that are not there": (
        model("{name: torchvision, architecture: resnet18, weights: /nonexistent/w.safetensors}"),
        "6: stages.teacher.model",
        "the file `/nonexistent/w.safetensors` does not exist",
    ),
    # YAML that is no plan
    "empty file": ("", "1", "a plan is a mapping with `name`, `task` and `stages`"),
    "only a comment": ("# nothing\n", "1", "a plan is a mapping"),
    "list": ("- a\n", "1", "a plan is a mapping"),
    "word": ("hello\n", "1", "a plan is a mapping"),
    "key written twice": (teacher("epochs: 3"), "8", "`epochs` is written twice, first on line 7"),
    "stage written twice": (
        PLAN + PLAN[PLAN.index("  student:") :],
        "13",
        "`student` is written twice, first on line 8",
    ),
    "tab": (change("    epochs: 2", "\tepochs: 2"), "7: not valid in a plan", "a tab; indent with spaces"),
    "bracket left open": (change("[30]", "[30"), "6: not valid in a plan", "expected ',' or ']'"),
    "two documents": (PLAN + "---\nname: b\n", "13: not valid in a plan", "expected a single document"),
    "character of no text": (change("probe", "pro\0be"), "1: not valid in a plan", "U+0000"),
    "alias of nothing": (change("probe", "*a"), "1: not valid in a plan", "undefined alias"),
    "alias of itself": ("name: &a\n  x: *a\n", "2", "nested too deep; does an alias contain itself?"),
    "mapping that takes over itself": (
        "name: &a\n  <<: *a\n",
        "2: not valid in a plan",
        "`<<` nested too deep; does an alias contain itself?",
    ),
    "mapping that takes over many": (
        f"name: &a {{{', '.join(f'k{index}: 1' for index in range(500))}}}\ntask: {{<<: [{'*a, ' * 500}]}}\n",
        "2",
        "do aliases multiply?",
    ),
    "network of endless depth": (
        change("[30]", f"[{'30, ' * 2001}]"),
        "6: stages.teacher.model.widths",
        "should have at most 2000 entries, not `[30, ",
    ),
    "residual network of endless depth": (
        change("{name: mlp, widths: [30]}", "{name: resnet, depth: 6000002}"),
        "6: stages.teacher.model.depth",
        "should be at most 2,000, not `6000002`",
    ),
    "list without end": (change("probe", f"[{'1, ' * 200_000}]"), "1", "more than 50,000 values"),
    "aliases that multiply": (
        "".join(
            f"k{depth}: &k{depth} [{', '.join(['x' if depth == 0 else f'*k{depth - 1}'] * 9)}]\n"
            for depth in range(7)
        ),
        "1",
        "do aliases multiply?",
    ),
    "deep nesting": (change("probe", "[" * 60 + "]" * 60), "1", "nested too deep"),
    "nesting deeper than the parser": (change("probe", "[" * 200_000), "1: not valid in a plan", "too deep"),
    "character of no text after others": ("ü: ü\nname: \0\n", "2: not valid in a plan", "U+0000"),
    "tab before a value": ("name:\n\t- a\n", "2: not valid in a plan", "a tab; indent with spaces"),
    "mark that begins nothing": ("name: `probe`\n", "1: not valid in a plan", "quote text"),
    "tag that would run code": (
        "name: !!python/object/apply:os.system ['true']\n",
        "1: not valid in a plan",
        "the tag `!!python/object/apply:os.system` is not allowed",
    ),
    "tag on a key": ("!!python/name:os.system '': x\n", "1: not valid in a plan", "a key must be a word"),
    "tag of nobody": (change("epochs: 2", "epochs: !foo 3"), "7: not valid in a plan", "the tag `!foo`"),
    "tag that lies": (change("epochs: 2", "epochs: !!int two"), "7: not valid in a plan", "`two` is no int"),
    "date that does not exist": (
        change("epochs: 2", "epochs: 2020-13-45"),
        "7: not valid in a plan",
        "`2020-13-45` is no timestamp",
    ),
    "merge of what is no mapping": (
        change("epochs: 2", "<<: 3"),
        "7: not valid in a plan",
        "`<<` takes over another mapping: `<<: *teacher`",
    ),
    "mistake in what was merged": (
        change("teacher:\n", "teacher: &common\n").replace("epochs: 2", "epochs: none", 1)
        + "  other: {<<: *common, seed: 3}\n",
        "7: stages.teacher.epochs",
        "should be a whole number, not `none`",
    ),
    "mistake beside what was merged": (
        change("teacher:\n", "teacher: &common\n") + "  other: {<<: *common, model: {name: mlp, depth: 3}}\n",
        "13: stages.other.model.depth",
        "model `mlp` has no option `depth`",
    ),
    "list as a key": ("? [a]\n: b\n", "1: not valid in a plan", "a key must be a word"),
    "line end in a key": (PLAN + '"sta\\nge": {}\n', "13: not valid in a plan", "a key must be a word"),
    "bytes of another encoding": (
        PLAN.replace("probe", "pröbe").encode("latin-1"),
        "1",
        "save the plan as UTF-8",
    ),
    # clusters, specialists, committees
    "clusters of nobody": (
        clusters("{stage: confusion_clusters, clusters: 3}"),
        "13: stages.clusters",
        "name the `generalist` whose confusions count, and how many `clusters`; or write them as `given`",
    ),
    "clusters both found and given": (
        clusters("{stage: confusion_clusters, generalist: teacher, clusters: 1, given: [[1, 2]]}"),
        "13: stages.clusters.given",
        "need neither `generalist` nor `clusters`",
    ),
    "cluster with a class that does not exist": (
        clusters("{stage: confusion_clusters, given: [[1, 2], [3, ten]]}"),
        "13: stages.clusters.given.1.1",
        "task `mnist`: there is no class `ten`",
    ),
    "cluster with a class out of range": (
        clusters("{stage: confusion_clusters, given: [[1, 10]]}"),
        "13: stages.clusters.given.0.1",
        "class 10 is not one of the task's 0 to 9",
    ),
    "cluster of one class": (
        clusters("{stage: confusion_clusters, given: [[1, 2], [3]]}"),
        "13: stages.clusters.given.1",
        "a cluster of one class leaves nothing to tell apart; add one",
    ),
    "cluster of all classes": (
        clusters("{stage: confusion_clusters, given: [[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]]}"),
        "13: stages.clusters.given.0",
        "a cluster of all classes needs no specialist",
    ),
    "class twice in a cluster": (
        clusters("{stage: confusion_clusters, given: [[1, 2, 1]]}"),
        "13: stages.clusters.given.0",
        "a class is listed twice",
    ),
    "file of clusters that is not there": (
        clusters("{stage: confusion_clusters, given: nowhere.yaml}"),
        "13: stages.clusters.given",
        "`nowhere.yaml` cannot be read",
    ),
    "more clusters than the classes fill": (
        clusters("{stage: confusion_clusters, generalist: teacher, clusters: 6}"),
        "13: stages.clusters.clusters",
        "6 clusters of at least 2 of 10 classes are too many",
    ),
    "clusters that do not hold all classes": (
        clusters("{stage: confusion_clusters, generalist: teacher, clusters: 2, maximum_size: 4}"),
        "13: stages.clusters.maximum_size",
        "2 clusters of at most 4 do not hold 10 classes",
    ),
    "overlapping clusters without a size": (
        clusters("{stage: confusion_clusters, generalist: teacher, clusters: 2, mode: overlap}"),
        "13: stages.clusters.size",
        "`size` says how many classes each overlapping cluster has",
    ),
    "overlapping clusters of all classes": (
        clusters("{stage: confusion_clusters, generalist: teacher, clusters: 2, mode: overlap, size: 10}"),
        "13: stages.clusters.size",
        "the task has 10 classes; a cluster holds fewer",
    ),
    "bounds of clusters the wrong way round": (
        clusters(
            "{stage: confusion_clusters, generalist: teacher, clusters: 2, minimum_size: 5, maximum_size: 4}"
        ),
        "13: stages.clusters.maximum_size",
        "`maximum_size` is below `minimum_size`",
    ),
    "views of the validation split": (
        clusters(
            "{stage: confusion_clusters, generalist: teacher, clusters: 2, views: 2, augment: [{name: shift}]}"
        ),
        "13: stages.clusters.views",
        "write `split: train`",
    ),
    "specialists with replicas": (
        specialists("replicas: 2"),
        "14: stages.specialists.replicas",
        "there is one specialist per cluster",
    ),
    "specialists that start elsewhere": (
        specialists("initial: student"),
        "14: stages.specialists.initial",
        "a specialist starts as its generalist",
    ),
    "specialists without labels": (
        specialists("transfer: {labelled: false}"),
        "14: stages.specialists.transfer",
        "specialists learn from labels",
    ),
    "specialists that see mixtures": (
        specialists("augment: [{name: mixup}]"),
        "14: stages.specialists.augment.0",
        "mixup would mix special and other samples",
    ),
    "specialists of a stage that makes no clusters": (
        clusters("{stage: train_specialists, generalist: teacher, clusters: student, epochs: 1}"),
        "13: stages.clusters.clusters",
        "`student` makes no clusters: its kind is `distill`; name a stage of `confusion_clusters`",
    ),
    "specialists as teachers": (
        specialists("")
        + "  two: {stage: distill, student: {name: mlp}, teachers: [specialists], epochs: 1}\n",
        "15: stages.two.teachers.0",
        "`specialists` makes no model",
    ),
    "committee of two generalists": (
        specialists("")
        + "  two: {stage: evaluate, models: [teacher, student], committee: {specialists: [specialists]}}\n",
        "15: stages.two.models",
        "a committee has one generalist, but `models` names 2",
    ),
    "committee that teaches live": (
        specialists("")
        + "  two: {stage: distill, student: {name: mlp}, teachers: [teacher], epochs: 1, mode: live,"
        + " committee: {specialists: [specialists]}}\n",
        "15: stages.two.mode",
        "a committee teaches through stored targets",
    ),
    "biases adjusted in a circle": (
        PLAN
        + "  one: {stage: adjust_class_bias, model: two, classes: [3]}\n"
        + "  two: {stage: adjust_class_bias, model: one, classes: [3]}\n",
        "13: stages.one.model",
        "stages read one another in a circle: one → two → one",
    ),
    "bias of a class that does not exist": (
        stage("one: {stage: adjust_class_bias, model: student, classes: [3, 12]}"),
        "13: stages.one.classes.1",
        "class 12 is not one of the task's 0 to 9",
    ),
    "prior that nobody looks at": (
        stage("one: {stage: adjust_class_bias, model: student, classes: [3], by: validation, prior: 0.1}"),
        "13: stages.one.prior",
        "`by: validation` asks for no `prior`",
    ),
    "one and a half GPUs": (
        teacher("resources: {gpus: 1.5}"),
        "8: stages.teacher.resources.gpus",
        "1.5 GPUs: only a single GPU can be shared",
    ),
    "early stopping by a number that nobody computes": (
        teacher("early_stopping: {patience: 1, metric: acuracy}"),
        "8: stages.teacher.early_stopping.metric",
        "unknown metric `acuracy`; did you mean `accuracy`?",
    ),
    "early stopping by a count that has no better": (
        teacher("early_stopping: {patience: 1, metric: samples}"),
        "8: stages.teacher.early_stopping.metric",
        "unknown metric `samples`; known: ",
    ),
    "early stopping by agreement with nobody": (
        teacher("early_stopping: {patience: 1, metric: agreement}"),
        "8: stages.teacher.early_stopping.metric",
        "`agreement` compares a student with its teacher, and this stage has none; stop by another metric",
    ),
    "early stopping by five of ten classes": (
        teacher("early_stopping: {patience: 1, metric: top5_accuracy}"),
        "8: stages.teacher.early_stopping.metric",
        "`top5_accuracy` is computed from 21 classes on, and here are 10; stop by another metric",
    ),
    "early stopping without patience": (
        teacher("early_stopping: {patience: 0}"),
        "8: stages.teacher.early_stopping.patience",
        "at least 1",
    ),
}


@pytest.mark.parametrize(("text", "place", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_a_malformed_plan_is_refused_in_one_line_with_its_place_and_a_way_out(
    text: str | bytes, place: str, words: str, refusal: Callable[..., str]
) -> None:
    message = refusal(text)
    assert message.startswith(f"plan.yaml:{place}: ")
    assert words in message
    assert message.isprintable()
    assert not [word for word in JARGON if word in message.lower()]


def test_a_plan_of_more_than_a_megabyte_is_not_read(refusal: Callable[..., str]) -> None:
    assert refusal(f"{PLAN}#{' ' * 1_000_000}") == "`plan.yaml` is larger than 1 MB; is it a plan?"


def test_the_plan_without_a_mistake_is_accepted(graph_of: Callable[..., object]) -> None:
    assert graph_of(PLAN)


OVERRIDES = {
    "no value": ("stages.student.epochs", "", "write it as `--set stages.student.epochs=10`"),
    "no path": ("=3", "", "write it as `--set stages.student.epochs=10`"),
    "a gap in the path": ("stages..epochs=3", "", "write it as"),
    "stage": (
        "stages.studnt.epochs=3",
        "",
        "`stages.studnt` does not exist in plan.yaml; did you mean `student`?",
    ),
    "key": ("stages.student.epoch=3", "stages.student.epoch", "unknown key `epoch`; did you mean `epochs`?"),
    "key at the top": ("nme=x", "nme", "unknown key `nme`; did you mean `name`?"),
    "place in a list": ("stages.student.teachers.1=x", "", "`stages.student.teachers.1` does not exist"),
    "key below a word": ("name.first=x", "", "`name.first` does not exist"),
    "value": ("stages.student.epochs=0", "stages.student.epochs", "should be at least 1, not `0`"),
    "value in a list": (
        "stages.teacher.model.widths.0=0",
        "stages.teacher.model.widths.0",
        "should be at least 1, not `0`",
    ),
    "key inside a value": (
        "stages.teacher.optimizer={name: sgd, lr: 1}",
        "stages.teacher.optimizer.lr",
        "unknown key `lr`",
    ),
    "what is missing in a mapping it makes": (
        "stages.teacher.optimizer.betas=[0.9, 0.99]",
        "stages.teacher.optimizer",
        "`name` is missing: the optimizer",
    ),
    "what the graph finds": (
        "stages.student.teachers=[nobody]",
        "stages.student.teachers.0",
        "reads `nobody`, which the plan does not define",
    ),
    "broken YAML": ("stages.student.epochs={", "not valid in a plan", "did not find expected node content"),
    "tag": ("name=!!python/name:os.system x", "not valid in a plan", "the tag `!!python/name:os.system`"),
    "two lines": ("name=a\nnme: b", "not valid in a plan", "mapping values are not allowed"),
}


@pytest.mark.parametrize(("override", "where", "words"), OVERRIDES.values(), ids=OVERRIDES.keys())
def test_a_wrong_override_is_refused_with_itself_as_the_place(
    override: str, where: str, words: str, refusal: Callable[..., str]
) -> None:
    message = refusal(PLAN, override)
    assert message.startswith(f"--set {' '.join(override.split())}: {where and where + ': '}")
    assert words in message
    assert message.isprintable()


def test_an_override_of_half_a_character_is_refused(refusal: Callable[..., str]) -> None:
    assert refusal(PLAN, "name=\udcff").endswith(": not valid in a plan: the byte 0xff is not UTF-8")


def test_the_mistake_that_comes_first_in_the_file_is_reported(refusal: Callable[..., str]) -> None:
    text = change("epochs: 2", "epochs: none").replace("[20]", "[0]")
    assert refusal(text).startswith("plan.yaml:7: stages.teacher.epochs")
    assert refusal(text.replace("epochs: none", "epochs: 1")).startswith(
        "plan.yaml:10: stages.student.student"
    )


def test_an_override_hides_the_line_of_what_it_replaces(refusal: Callable[..., str]) -> None:
    text = teacher("optimizer: {name: sgd, learning_rate: 0.1}")
    message = refusal(text, "stages.teacher.optimizer={name: sgd, learning_rate: 0}")
    assert message.startswith("--set stages.teacher.optimizer=")


def test_the_command_refuses_plans_with_exit_code_2_and_loads_neither_torch_nor_ray(tmp_path: Path) -> None:
    names = ("key of a stage", "model", "no temperature", "circle", "tab", "folder without data")
    files = [tmp_path / f"{index}.yaml" for index in range(len(names))]
    for file, name in zip(files, names, strict=True):
        file.write_text(REFUSED[name][0])
    arguments = [sys.executable, "-c", PROBE, *map(str, files), str(tmp_path / "absent.yaml")]
    ended = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert ended.stdout.split("\n") == ["2"] * 7 + ["[]", ""]
    errors = ended.stderr.splitlines()
    assert len(errors) == 7
    assert all(line.startswith("error: ") for line in errors)

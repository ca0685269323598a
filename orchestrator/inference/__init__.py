"""Predictions for whatever lies somewhere: pictures in folders, tars and tables, numbers in arrays and tables.

    inputs.py     what is named, one after the other: files, folders, globs, and what lies in each file
    tables.py     CSV and Parquet: rows of numbers, or where their pictures are
    arrays.py     .npy, .npz, .safetensors
    batches.py    any number of inputs as batches of one size, decoded by all cores, some ahead of the model
    labels.py     the most probable classes of a batch
    predict.py    inputs in, predictions out
    output.py     predictions as CSV, Parquet or JSON lines, written as they come

The pixels are those of evaluation: a task's `picture_input` reads each picture, and a batch has the size that it has
there. Nothing grows with the number of inputs.
"""

"""Decoding steps and int8 products: a small C++ library, built on the machine that runs it.

    src/         the library: products, layers, the step
    library.py   builds it, keeps it in the user's cache folder, loads it
    table.py     describes a decoder to it, in pointers to the tensors that are there
    watch.py     tells when a model has changed since
    step.py      takes the steps that it can, and leaves all others to PyTorch
    experts.py   int8 experts of many rows
    float_experts.py  large float32 experts of many rows
    rows.py      rounding before, and scaling after, an int8 product of many rows

PyTorch's path is the reference, and all that is needed; docs/adr/0017, 0018 and 0020 say why
there is another.
"""

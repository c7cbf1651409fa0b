"""Benchmarks of grf-fusion against its peers; not part of the package.

They need tqdm and matplotlib (the `examples` extra). `pip install x-transformers perceiver-pytorch`
installs the peers that are packages. Run them on an idle machine:

    python -m benchmarks.speed --json default.json
    python -m benchmarks.speed --allocator keep --only A,B --json keep.json
    python -m benchmarks.gpu --out FOLDER
    python -m benchmarks.speed --compile --json compiled.json
    python -m benchmarks.speed.report default.json
    python -m benchmarks.speed.plots default.json docs/assets

`benchmarks.quality` measures accuracy instead of speed.
"""

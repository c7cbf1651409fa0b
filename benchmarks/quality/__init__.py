"""How well fusions do on real data; not part of the package.

    python -m benchmarks.quality --data ../shared/data --out quality --jobs 4
    python -m benchmarks.quality --data ../shared/data --out quality --only 'icu2012,GRF*'
    python -m benchmarks.quality --out quality --report --docs docs
    benchmarks/quality/sweep.sh 480 16 quality --data ../shared/data

The first runs every method that is compared on every data set, most important first, and appends
each run to `quality/runs.jsonl`, so that an interrupted call can be continued. The second runs some
of them, ablations too. The third only writes tables of what has run. The fourth trains for 480
seconds in 16 processes, on a machine that may have PyTorch and NumPy alone; `--merge` takes over
its file. Steps are timed by a call with one process, on a machine that does nothing else. Tables
need the `examples` extra.

The protocol, the same for every method: the model is the fusion and one linear layer, on features
as they come, or with `-encoded` behind the name of the data set, behind the same small network for
each modality. AdamW with warm-up and cosine, clipped gradients, modality dropout 0.5 (none for
models of one modality each), dropout 0.1, the epoch that validation likes best. Validation is the
mean of everything there and about half of the modalities missing, which the test asks for too.
All methods have the same number of trials,
of learning rate and width (of scikit-learn's settings for the classical
methods), judged on validation. Trials have seed 0; the best settings then get seeds 1 to 5, each
tested once. Where each seed has another validation part (dsads), trials have seeds 1 to 5 and are
tested at once, and those of the settings with the best mean on validation are reported. Statistics
are fitted on the training part only; the splits are those of the READMEs beside the data, never at
random where they say no. In the curve of missing modalities each sample keeps at most n - k random
ones of those it has, the same ones for every method. What was predicted of each test sample is
kept, and compared in pairs.

CMU-MOSI is not available here. With `mosi_data.pkl` of MulT's authors in DIR/mosi:

    python -m benchmarks.quality --data DIR --only mosi
"""

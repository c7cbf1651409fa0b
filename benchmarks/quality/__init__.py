"""Compare the accuracy of fusions on real data; not part of the package.

    python -m benchmarks.quality --data ../shared/data --out quality --jobs 4
    python -m benchmarks.quality --data ../shared/data --out quality --only 'icu2012,GRF*'
    python -m benchmarks.quality --out quality --report --docs docs
    benchmarks/quality/sweep.sh 480 16 quality --data ../shared/data

The first runs all compared methods on every data set, most important first. It appends each run to
`quality/runs.jsonl`, so an interrupted call can be continued. The second runs a selection, with
ablations. The third only writes tables of the stored runs. The fourth trains for 480 seconds in 16
processes, on a machine that needs only PyTorch and NumPy; `--merge` adds its file. Steps are timed
by a call with one process, on an idle machine. Tables need the `examples` extra.

The protocol is the same for every method. The model is the fusion and one linear layer, on raw
features or, for data sets with the suffix `-encoded`, behind the same small network per modality.
Training uses AdamW with warm-up and cosine decay, clipped gradients, modality dropout 0.5 (none for
models of one modality each) and dropout 0.1. The epoch with the best validation score counts. This
score is the mean of all modalities present and about half missing, as in the test.

All methods have the same number of trials: learning rates and widths, or scikit-learn's settings
for the classical methods. Trials have seed 0; the best settings then get seeds 1 to 5, each tested
once. If each seed has its own validation part (dsads), trials have seeds 1 to 5 and are tested at
once, and the settings with the best mean on validation are reported. Statistics are fitted to the
training part only. The splits are those of the READMEs beside the data. With k of n modalities
missing, each sample keeps at most n - k of its modalities, drawn at random and the same ones for
every method. The predictions of each test sample are stored and compared in pairs.

CMU-MOSI is not included. With `mosi_data.pkl` of MulT's authors in DIR/mosi:

    python -m benchmarks.quality --data DIR --only mosi
"""

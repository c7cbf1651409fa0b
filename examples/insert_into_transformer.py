"""GRF inside a pretrained Transformer: image and sound enter BERT behind two of its layers.

Run `python examples/insert_into_transformer.py`. BERT has random weights here, so that nothing is
downloaded; with `BertModel.from_pretrained("bert-base-uncased")` the lines are the same.
"""

import argparse

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertModel

from grf_fusion import AdaptedModel, FusionAdapter, mask_from_lengths

LAYERS = 10
BEHIND = (4, 8)
HIDDEN, HEADS, VOCABULARY = 64, 4, 200
WIDTHS = {"image": 48, "audio": 24}
BATCH = 64


def make_bert() -> BertModel:
    """Make the host."""
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, intermediate_size=2 * HIDDEN,
    )  # fmt: skip
    return BertModel(config)


def insert(bert: BertModel) -> AdaptedModel:
    """Put an adapter behind two of its layers."""
    adapters = {
        f"encoder.layer.{k}": FusionAdapter(
            WIDTHS, embed_dim=bert.config.hidden_size, num_heads=HEADS, dropout=0.1
        )
        for k in BEHIND
    }
    return AdaptedModel(bert, adapters=adapters)


def draw(seed: int) -> tuple[dict[str, Tensor], dict[str, object], Tensor]:
    """Draw tokens, what is seen and heard, and a label of four: two by each of them."""
    chance = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, VOCABULARY, (BATCH, 12), generator=chance)
    lengths = torch.randint(4, 13, (BATCH,), generator=chance)
    tokens = {"input_ids": ids, "attention_mask": mask_from_lengths(lengths, 12).long()}
    features = {
        name: torch.randn(BATCH, time, width, generator=chance)
        for (name, width), time in zip(WIDTHS.items(), (9, 15), strict=True)
    }
    signs = [torch.randint(2, (BATCH,), generator=chance) for _ in WIDTHS]
    for sign, x in zip(signs, features.values(), strict=True):
        x[:, :, 0] += (2.0 * sign - 1.0).unsqueeze(1)
    more = {"features": features, "hidden_mask": tokens["attention_mask"]}
    return tokens, more, 2 * signs[0] + signs[1]


def train(model: AdaptedModel, steps: int) -> float:
    """Train the adapters and a head, the host frozen; return the accuracy on what is new."""
    head = nn.Linear(HIDDEN, 4)
    model.host.requires_grad_(requires_grad=False)
    learnt = [*model.adapters.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(learnt, lr=3e-3)
    model.train()
    for step in range(steps):
        tokens, more, labels = draw(seed=step + 1)
        scores = head(model(**tokens, **more).last_hidden_state[:, 0])
        loss = F.cross_entropy(scores, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    tokens, more, labels = draw(seed=0)
    with torch.inference_mode():
        scores = head(model(**tokens, **more).last_hidden_state[:, 0])
    return (scores.argmax(dim=1) == labels).float().mean().item()


def main() -> None:
    """Insert, show that nothing has changed, train, and take it out again."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100, help="training steps (about 20 s)")
    args = parser.parse_args()
    torch.manual_seed(0)
    bert = make_bert().eval()
    checkpoint = {name: value.clone() for name, value in bert.state_dict().items()}
    tokens, more, _ = draw(seed=0)
    with torch.inference_mode():
        before = bert(**tokens).last_hidden_state
    model = insert(bert).eval()
    with torch.inference_mode():
        after = model(**tokens, **more).last_hidden_state
    print(f"as it was, bit for bit: {torch.equal(before, after)}")
    print(f"the host's keys are unchanged: {list(model.host.state_dict()) == list(checkpoint)}")
    print(f"its checkpoint loads: {model.host.load_state_dict(checkpoint, strict=True)}")

    hosts = sum(parameter.numel() for parameter in bert.parameters())
    ours = sum(parameter.numel() for parameter in model.adapters.parameters())
    print(f"parameters: host {hosts:,}, adapters {ours:,}")
    accuracy = train(model, args.steps)
    print(f"accuracy after {args.steps} steps, host frozen: {accuracy:.2f} (chance .25)")

    with torch.inference_mode():
        absent = torch.zeros(BATCH, len(WIDTHS), dtype=torch.bool)
        untouched = model(**tokens, **more, present=absent).last_hidden_state
        print(f"nothing seen nor heard, bit for bit the host: {torch.equal(before, untouched)}")
        removed = model.remove()(**tokens).last_hidden_state
    print(f"taken out again, bit for bit: {torch.equal(before, removed)}")


if __name__ == "__main__":
    main()

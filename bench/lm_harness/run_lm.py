"""Wrap an autoregressive run as a model of lm-evaluation-harness.

    log p(ending | context) = sum over the ending of log_softmax(h @ head.T), of the last T + 1 tokens of

        <start> context ending          (one encoding; the harness's own code splits it, api/model.py)

Plain PyTorch in fp32, padded rows, all logits of an ending. It shares no code with our own scoring of endings, so the
two can be compared.
"""

import torch

try:
    from lm_eval.api.model import TemplateLM

    ABSENT = ""
except ImportError as e:
    TemplateLM, ABSENT = object, str(e)


class RunLM(TemplateLM):
    """An autoregressive model for the harness, the start token before every text: add_bos_token=True of its HF model.

    A text of more than T tokens is cut as models/huggingface.py cuts it, or with keep_start as endings.py does.
    """

    def __init__(self, model, tokenizer, T: int, rows: int = 16):
        super().__init__()
        self.model, self.tokenizer, self.T, self.rows = model, tokenizer, T, rows
        self.keep_start, self.cut, self.known = False, set(), {}  # known: the answers that no cut touches

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.start_token_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_) -> list[int]:
        ids = self.tokenizer.encode(string)
        return ids if add_special_tokens is False else [self.eot_token_id, *ids]

    @torch.no_grad()
    def _loglikelihood_tokens(self, requests, **_) -> list[tuple[float, bool]]:
        figures = [self.known.get(text) for text, *_ in requests]
        asked: dict[tuple, list] = {}  # endings of one token share the row that is read
        for i, (text, context, ending) in enumerate(requests):
            if figures[i] is None:
                ids = (context + ending)[-(self.T + 1) :]
                if len(ids) < len(context) + len(ending):
                    self.cut.add(text)
                    ids[0] = self.eot_token_id if self.keep_start else ids[0]
                asked.setdefault(tuple(ids[:-1]), []).append((i, ending))
        rows, head = sorted(asked, key=len), self.model.head.float()
        for at in range(0, len(rows), self.rows):
            part = rows[at : at + self.rows]
            x = torch.tensor([row + (0,) * (len(part[-1]) - len(row)) for row in part], device=head.device)
            n = [max(len(ending) for _, ending in asked[row]) for row in part]
            h = [h[len(row) - k : len(row)] for h, row, k in zip(self.model(x, causal=True), part, n, strict=True)]
            log_p = (torch.cat(h).float() @ head.T).log_softmax(-1).cpu()
            for row, each, best in zip(part, log_p.split(n), log_p.argmax(-1).split(n), strict=True):
                for i, ending in asked[row]:
                    y = torch.tensor(ending)
                    nats = each[-len(y) :].gather(1, y[:, None]).double().sum().item()
                    figures[i] = nats, bool((best[-len(y) :] == y).all())
        self.known |= {r[0]: answer for r, answer in zip(requests, figures, strict=True) if r[0] not in self.cut}
        return figures

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False):
        """LM is abstract and wants this and generate_until; multiple-choice tasks and LAMBADA ask for neither."""
        raise NotImplementedError("the tasks of bench/lm_harness/harness.py score endings: use loglikelihood")

    generate_until = loglikelihood_rolling

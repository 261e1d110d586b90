"""A pruning method of one's own beside the library's: keeps the visual tokens that differ most from their picture's mean."""
import sys

import glimpse


@glimpse.register
class Unusual(glimpse.Pruner):
    """the tokens that differ most from their picture's mean"""

    def __init__(self, keep: float = 0.1):
        self.keep = keep

    def cuts(self, model):
        return [glimpse.Cut("before", 0, reads_text=False)]

    def select(self, view, cut, budget):
        count = budget.of(view.total) or round(self.keep * view.total)
        hidden = view.hidden.float()
        return (hidden - hidden.mean(0)).norm(dim=1).topk(count).indices


table = glimpse.evaluate(sys.argv[1] if len(sys.argv) > 1 else "build/unusual", methods=["none", "unusual", "divprune", "glimpse"],
                         budgets=[0.05], limit=2)
for row in table:
    if row["set"] == "all rows":
        print(f"{row['method']:9} score {row['score']:.2f}  kept {row['kept']:.3f}  F1 of the boxes {row['f1']:.2f}")

"""The table of all scores: what each is called, which way is better, how it is written, what it means."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Score:
    """How a score is read."""

    words: str  # for a person
    label: str  # in tables
    better: str  # "higher", "lower" or "neither"
    meaning: str
    decimals: int = 3  # shown

    def text(self, value: float, signed: bool = False) -> str:
        return f"{value:{'+' if signed else ''}.{self.decimals}f}"


SCORES = {
    "clip_a": Score("Likeness to the prompt", "CLIP a", "higher", "likeness to the prompt, mean cosine over 120 views"),
    "clip_b": Score("Likeness to the prompt", "CLIP b", "higher", "the same by another model"),
    "view_accuracy_a": Score(
        "Sides where they belong", "views a", "higher", "share of views that CLIP a gives the right name"
    ),
    "view_accuracy_b": Score("Sides where they belong", "views b", "higher", "the same by another model"),
    "janus_rate_a": Score(
        "Faces on the back", "front behind a", "lower", "share of views from behind (105° on) that CLIP a calls front"
    ),
    "janus_rate_b": Score("Faces on the back", "front behind b", "lower", "the same by another model"),
    "janus_count_a": Score(
        "Number of faces on the back",
        "faces behind a",
        "lower",
        "separate arcs of at least 9° among them; 2 if all are",
        2,
    ),
    "janus_count_b": Score("Number of faces on the back", "faces behind b", "lower", "the same by another model", 2),
    "a_lpips_a": Score(
        "Change from view to view",
        "A-LPIPS a",
        "lower",
        "change between neighbouring views; what is blank or blurred does well",
        4,
    ),
    "a_lpips_b": Score("Change from view to view", "A-LPIPS b", "lower", "the same by another net", 4),
    "a_lpips_difference_a": Score(
        "Change, minus the true object's",
        "A-LPIPS a, minus the truth's",
        "neither",
        "below 0 it changes less than the true object does, above 0 more",
        4,
    ),
    "a_lpips_difference_b": Score(
        "Change, minus the true object's", "A-LPIPS b, minus the truth's", "neither", "the same by another net", 4
    ),
    "a_lpips_error_a": Score(
        "Change unlike the true object's", "A-LPIPS a, off", "lower", "that difference without its sign", 4
    ),
    "a_lpips_error_b": Score(
        "Change unlike the true object's", "A-LPIPS b, off", "lower", "the same by another net", 4
    ),
    "silhouette_iou": Score(
        "Outline like the true object's",
        "IoU",
        "higher",
        "overlap of outlines with the true object, best over its variants",
    ),
    "coverage": Score(
        "Share of the picture",
        "coverage",
        "neither",
        "share of the picture that is opaque; to be read beside the truth's",
    ),
}

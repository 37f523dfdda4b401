"""The tab About names every score, the stack and the versions."""

from redream.app.about import about_html
from redream.scoring.scores import QUANTITIES, SCORES


def test_every_score_is_explained_and_the_stack_named_with_its_reason(models):
    html = about_html(models.stack, "There is no <CUDA> device.").replace("&#39;", "'")
    assert all(score.label in html for score in SCORES.values())
    assert all(quantity.name in html and quantity.explanation[1:] in html for quantity in QUANTITIES.values())
    assert "tiny: There is no &lt;CUDA&gt; device." in html and "torch" in html


def test_each_step_of_the_method_has_a_picture(models):
    assert about_html(models.stack, "").count("<img") == 5

"""examples.about: the pictures of the About tab."""

from PIL import Image
from tiny_stack import TINY

from examples import about
from redream import pipeline


def test_the_about_pictures_are_made_of_a_finished_run(models, tmp_path):
    """Two assets; before and after orientation; the previews of the warm-up; six samples; the later previews."""
    for _ in pipeline.generate("a purple owl", settings=TINY, out=tmp_path / "run", models=models):
        pass
    assert about.main([str(tmp_path / "run"), "--out", str(tmp_path / "about")]) == 0
    sizes = {}
    for number in range(1, 6):
        with Image.open(tmp_path / f"about/{number}.jpg") as picture:
            sizes[number] = tuple(length // about.SIZE for length in picture.size)
    assert [sizes[1], sizes[2], sizes[4]] == [(4, 2), (4, 2), (3, 2)]
    previews = list((tmp_path / "run/preview").glob("*.png"))
    assert sizes[3][0] + sizes[5][0] == len(previews) and sizes[3][1] == sizes[5][1] == 1


def test_evenly_spaced_files_have_the_first_and_the_last():
    files = [about.Path(f"{number}.png") for number in range(10)]
    assert [file.stem for file in about.evenly_spaced(files)] == ["0", "3", "6", "9"]
    assert about.evenly_spaced(files[:2]) == files[:2]

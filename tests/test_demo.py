"""The demo: what its page shows, and once the page itself."""

import shutil

import pytest
from PIL import Image

from efficientnetv2 import demo
from efficientnetv2.serving import predict
from tests.conftest import run_program

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def images(tmp_path_factory, source):
    """A folder with an image of class 3, and files that are none."""
    folder = tmp_path_factory.mktemp("images")
    Image.fromarray(source.images[3][:, :, 0]).save(folder / "three.png")
    (folder / "notes.txt").write_text("no <b>image</b>")
    (folder / "empty.jpg").write_bytes(b"")
    return folder


@pytest.mark.parametrize(
    ("part", "method"), [("", "Grad-CAM"), ("saved_model", "occlusion")]
)
def test_images_are_explained_and_other_files_get_a_message(
    folder_run, images, part, method
):
    classifier = predict.load_classifier(folder_run / part)
    paths = sorted(images.iterdir())
    page = demo.explain_images(classifier, paths)
    rows = page.split("<tr>")[1:]
    assert len(rows) == demo.TOP and "class 3" in rows[0]
    assert page.count("data:image/png") == 2 and method in page
    assert page.count("Cannot read this file: ") == 2
    assert demo.explain_images(classifier, []).count("<article>") == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Set --model"),
        (["--model=runs/none"], "There is no model 'runs/none'"),
        (["--model=efficientnetv2-b0", "--port=0"], "--port=0"),
    ],
)
def test_mistakes_are_told_at_once(arguments, words):
    result = run_program(*arguments, module="efficientnetv2.demo")
    assert result.returncode in (1, 2) and words in result.stderr
    assert "Traceback" not in result.stderr


def test_the_page_in_a_browser(folder_run, images):
    """Needs gradio, playwright and the program chromium."""
    gradio = pytest.importorskip("gradio")
    api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("There is no chromium.")
    classifier = predict.load_classifier(folder_run)
    address = demo.serve_page(classifier, "my run", block=False)
    assert address.startswith("http://127.0.0.1:")
    try:
        with api.sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=chromium, args=["--no-sandbox"]
            )
            page = browser.new_page()
            page.goto(address)
            page.locator("input[type=file]").set_input_files(
                [images / "three.png", images / "notes.txt"]
            )
            results = page.locator(".demo")
            results.get_by_text("Grad-CAM").wait_for(timeout=60_000)
            assert "class 3" in results.inner_text()
            assert "Cannot read this file: " in results.inner_text()
            browser.close()
    finally:
        gradio.close_all()

"""Checkpoints of a run: compared, shown again after a reload, and taken, on both tabs that lead there."""

from sdlora.api.adapters import checkpoint_in_use, preferred_weight
from sdlora.storage.run_folder import Run
from tests.support.browser import STEPS, wait_until

SMALL = {"width": 390, "height": 800}


def test_checkpoints_are_compared_and_the_proposal_is_used(server, visit):
    visitor = visit(server.address)
    visitor.tab("Train")
    visitor.see(f"Finished: {STEPS} steps", "#run-status")
    visitor.page.locator("#checkpoints").wait_for()
    visitor.click("#evaluation > button")
    visitor.see("at 3 scales, beside the base", "#evaluation-plan")
    visitor.click("#evaluation-settings > button")
    wait_until(lambda: "ohwx" in visitor.value("#evaluation-prompts"))
    visitor.fill("#evaluation-scales", "8")
    visitor.see("scales", "#evaluation-plan .bad")
    visitor.fill("#evaluation-scales", "0.9")
    visitor.fill("#evaluation-checkpoints", str(STEPS))
    visitor.fill("#evaluation-seeds", "1")
    visitor.fill("#evaluation-steps", "1")
    visitor.fill("#evaluation-prompts", "ohwx style, a red house on grass")
    visitor.see("32 pictures: 1 checkpoint at 1 scale", "#evaluation-plan")
    wait_until(lambda: visitor.value("#evaluation-class-prompts") == "a red house on grass")
    visitor.click("#evaluation-button")
    visitor.page.locator("#evaluation-cancel").wait_for()
    visitor.page.reload()
    visitor.tab("Train")
    visitor.see(f"We would take step {STEPS} at scale 0.9", "#evaluation-result")
    wait_until(lambda: visitor.page.locator("#evaluation-status .note").count() == 0)
    visitor.page.locator("#evaluation-result summary").click()
    visitor.see("prompts kept", "#evaluation-result thead")
    with visitor.page.context.expect_page() as opened:
        visitor.click("#evaluation-result .contact-sheet img")
    assert opened.value.locator("img").evaluate("image => image.decode().then(() => image.naturalWidth)") > 600
    opened.value.close()
    visitor.click("#evaluation-use")
    visitor.see(f"now uses step {STEPS}, scale 0.9", "#evaluation-used")
    run = Run(server.data_dir / "runs" / "mystyle")
    assert checkpoint_in_use(run) == STEPS and preferred_weight(run.adapter) == 0.9


def test_the_library_leads_to_it_and_an_outdated_result_says_so_on_a_phone(server, visit):
    run = Run(server.data_dir / "runs" / "mystyle")
    later = run.checkpoint(STEPS).read_bytes()
    run.checkpoint(STEPS + 2).write_bytes(later)
    visitor = visit(server.address, viewport=SMALL, has_touch=True, color_scheme="dark")
    visitor.tab("Library")
    visitor.page.get_by_role("tab", name="Runs").click()
    visitor.page.get_by_role("button", name="Which checkpoint? mystyle").click()
    visitor.see("pictures:", "#evaluation-plan")
    visitor.see(f"older than the run: checkpoint {STEPS + 2} saved since", "#evaluation-result")
    assert visitor.page.evaluate("() => document.documentElement.scrollWidth") <= SMALL["width"]

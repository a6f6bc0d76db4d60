"""The monitor's pictures show a decision from the step at which it holds."""

from monitor_data import decision

from versatune_ds.monitor.decision_views import draw_weights


def area_at(figure, step):
    """Return how high the lowest area stands just behind a step."""
    (outline,) = figure.axes[0].collections[0].get_paths()
    return max(y for x, y in outline.vertices if x == step)


def test_what_was_decided_before_training_holds_from_its_step_and_the_start_until_then():
    figure = draw_weights([decision(update=0, law=0.625), decision(update=1, law=0.75)])
    assert (area_at(figure, 0), area_at(figure, 3), area_at(figure, 13)) == (0.5, 0.625, 0.75)

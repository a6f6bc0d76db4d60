"""The monitor's charts show a decision from the step at which it takes effect."""

from monitor_data import decision

from versatune_ds.monitor.decision_views import draw_weights


def area_at(figure, step):
    """Return the height of the lowest area just after a step."""
    (outline,) = figure.axes[0].collections[0].get_paths()
    return max(y for x, y in outline.vertices if x == step)


def test_the_decision_before_training_is_shown_from_its_effective_step_and_the_starting_weights_before_it():
    figure = draw_weights([decision(update=0, law=0.625), decision(update=1, law=0.75)])
    assert (area_at(figure, 0), area_at(figure, 3), area_at(figure, 13)) == (0.5, 0.625, 0.75)

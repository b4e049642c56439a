from lanewise.lab import protocol


def test_rounding_passes_and_other_mathematics_does_not():
    # Observed on nam56r-tiny: 5e-7 nats over twenty steps between backends; the auxiliary losses move step 1 by 1e-3.
    for step in range(protocol.PAIRED_LOSS_STEPS["fp32"]):
        assert protocol.loss_tolerance(step, 5.5, "fp32") / 100 > 5e-7
    assert protocol.loss_tolerance(1, 5.5, "fp32") < 1e-3 / 4
    assert protocol.loss_tolerance(0, 5.5, "fp32") < protocol.loss_tolerance(7, 5.5, "fp32")
    # Observed on an H100 in bf16, two implementations of AdamW among them.
    observed = (1.3e-4, 9.2e-5, 6.1e-4, 7.5e-4)
    assert len(observed) == protocol.PAIRED_LOSS_STEPS["bf16"]
    for step, difference in enumerate(observed):
        assert protocol.loss_tolerance(step, 5.5, "bf16") / 4 > difference
    assert protocol.loss_tolerance(0, 5.5, "bf16") > protocol.loss_tolerance(0, 5.5, "fp32")


def test_the_protocol_digest_covers_design_and_threads_but_not_what_was_affordable():
    one = protocol.parameters("lockstep", num_threads=1)
    assert one != protocol.parameters("sequential", num_threads=1)
    assert one != protocol.parameters("lockstep", num_threads=2)
    assert not {"blocks", "quads"} & one.keys()

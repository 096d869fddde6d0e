//! The checks that every plugin must pass, on the smallest network.

conformance::conformance_tests!(wide_resnet);

//! The checks that every plugin must pass, on a narrow network.

conformance::conformance_tests!(resnet);

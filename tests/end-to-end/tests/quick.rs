//! One training run and its evaluation: the end-to-end part of `make quick`.

use crate::harness::Place;

#[test]
fn a_classifier_is_trained_and_evaluated() {
    let place = Place::with_digits(12, 200);
    let train = "train --recipe algorithm-1 --data digits --threads 1 --batch 20 --epochs 8 --epsilon 0.1 \
                 --sampler langevin.so,step_size=0.05,noise=0.05 --model bad_plugins.so,plugin=linear --out run";
    place.host(train).succeeds();
    let result = place.host("eval run --attack pgd.so,steps=10 --json").succeeds().json_lines().remove(0);
    let [clean, robust] = ["clean", "worst_case"].map(|key| result[key].as_f64().expect("a share"));
    assert!(clean > 0.5 && robust > 0.2 && robust <= clean, "clean {clean}, robust {robust}");
}

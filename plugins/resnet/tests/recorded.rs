//! Logits and running moments are those of torchvision's networks (tests/parity/record_networks.py).

use plugin_api::Result;
use replay::assert_computes_as_recorded;
use resnet::{Options, ResNet};

#[test]
fn basic_blocks_and_bottlenecks_compute_what_torchvisions_do() -> Result<()> {
    for (depth, last) in [(18, "layer4.1.bn2"), (50, "layer4.2.bn3")] {
        let options = Options { depth, ..Options::default() };
        assert_computes_as_recorded::<ResNet>(
            options,
            &format!("resnet-{depth}.safetensors"),
            ["bn1", last],
        )?;
    }
    Ok(())
}

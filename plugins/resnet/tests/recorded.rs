//! Logits and running statistics equal those of torchvision's networks
//! (tests/parity/record_networks.py).

use plugin_api::Result;
use replay::assert_computes_as_recorded;
use resnet::{Options, ResNet};

#[test]
fn networks_of_basic_blocks_and_of_bottlenecks_equal_those_of_torchvision() -> Result<()> {
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

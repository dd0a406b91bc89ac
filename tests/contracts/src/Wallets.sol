// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC1271} from "@openzeppelin/contracts/interfaces/IERC1271.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";

/// A contract that pays with its owner's signature (EIP-1271), until it has another owner.
contract Wallet is IERC1271 {
    address internal _owner;

    constructor(address owner_) {
        _owner = owner_;
    }

    function owner() public view virtual returns (address) {
        return _owner;
    }

    function setOwner(address next) external {
        require(msg.sender == owner() || msg.sender == address(this), "only the owner");
        _owner = next;
    }

    /// The owner's signature: 65 bytes, or behind the 20 bytes of its address, as wallets with several keys have it.
    function isValidSignature(bytes32 hash, bytes calldata signature) external view returns (bytes4) {
        bytes calldata signed = signature;
        if (signature.length == 85) {
            if (address(bytes20(signature[:20])) != owner()) return 0xffffffff;
            signed = signature[20:];
        }
        (address signer, ECDSA.RecoverError failure, ) = ECDSA.tryRecover(hash, signed);
        bool fine = failure == ECDSA.RecoverError.NoError && signer == owner();
        return fine ? IERC1271.isValidSignature.selector : bytes4(0xffffffff);
    }
}

/// Code for an ordinary account to delegate to (EIP-7702): the account's own key signs, until it names another.
contract Delegate is Wallet {
    constructor() Wallet(address(0)) {}

    function owner() public view override returns (address) {
        return _owner == address(0) ? address(this) : _owner;
    }
}

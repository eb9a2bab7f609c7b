package spool

import (
	"os"
	"syscall"
)

// syncFile is fdatasync, which spares the times of the file but not its size.
func syncFile(f *os.File) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var synced error
	err = conn.Control(func(fd uintptr) {
		for {
			if synced = syscall.Fdatasync(int(fd)); synced != syscall.EINTR {
				return
			}
		}
	})
	if err == nil && synced != nil {
		err = os.NewSyscallError("fdatasync", synced)
	}
	return err
}

// The types of file systems that several machines may have mounted, of
// linux/magic.h and of their own headers.
var shared = map[int64]bool{
	0x6969:     true, // NFS
	0x0bd00bd0: true, // Lustre
	0x47504653: true, // GPFS
	0xff534d42: true, // CIFS
	0xfe534d42: true, // SMB2
	0x517b:     true, // SMB
	0x5346414f: true, // AFS
	0x00c36400: true, // Ceph
	0x01021997: true, // 9P
	0x65735546: true, // FUSE: sshfs, BeeGFS' older clients and many others
	0x19830326: true, // BeeGFS
	0xaad7aaea: true, // PanFS
	0x01161970: true, // GFS2
	0x7461636f: true, // OCFS2
}

func sharedFileSystem(dir string) bool {
	var stat syscall.Statfs_t
	if err := syscall.Statfs(dir, &stat); err != nil {
		return true // if in doubt, take care
	}
	return shared[int64(uint32(stat.Type))]
}

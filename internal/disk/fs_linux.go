package disk

import (
	"os"
	"syscall"
)

// syncFile calls fdatasync, which does not write the file's times, but does write its size.
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

// The types of file systems that several machines may have mounted, from linux/magic.h and from the
// file systems' own headers.
var shared = map[int64]string{
	0x6969:     "NFS",
	0x0bd00bd0: "Lustre",
	0x47504653: "GPFS",
	0xff534d42: "CIFS",
	0xfe534d42: "SMB",
	0x517b:     "SMB",
	0x5346414f: "AFS",
	0x00c36400: "Ceph",
	0x01021997: "9P",
	0x65735546: "FUSE", // sshfs, older clients of BeeGFS, and many others
	0x19830326: "BeeGFS",
	0xaad7aaea: "PanFS",
	0x01161970: "GFS2",
	0x7461636f: "OCFS2",
}

// The types of file systems whose content is lost when the machine stops.
var inMemory = map[int64]string{
	0x01021994: "tmpfs",
	0x858458f6: "ramfs",
}

// FileSystem returns the kind of file system that a directory is on. If it cannot find out, it says
// that the file system is shared, which is the safe assumption.
func FileSystem(dir string) (FileSystemKind, error) {
	var stat syscall.Statfs_t
	if err := syscall.Statfs(dir, &stat); err != nil {
		return FileSystemKind{Shared: true}, os.NewSyscallError("statfs", err) // the safe assumption
	}
	kind := int64(uint32(stat.Type))
	if name, ok := shared[kind]; ok {
		return FileSystemKind{Name: name, Shared: true}, nil
	}
	name, ok := inMemory[kind]
	return FileSystemKind{Name: name, InMemory: ok}, nil
}
